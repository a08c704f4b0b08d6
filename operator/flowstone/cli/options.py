"""The options that several commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowstone.cli.output import Output

Name = Annotated[str, typer.Argument(help="Name of the Backfill.", show_default=False)]
File = Annotated[Path, typer.Option("-f", "--file", help="File with the Backfill; - is the standard input.")]
Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace; default: the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig; default: the current one.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", envvar="KUBECONFIG", help="The kubeconfig file.")]
Form = Annotated[Output, typer.Option("-o", "--output", help="Form of the answer.")]
Seconds = Annotated[float | None, typer.Option("--timeout", min=0, help="Give up waiting after this many seconds.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is over; the exit code says how it ended.")]
