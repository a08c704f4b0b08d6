"""`flowstone run -f backfill.yaml --local`: the same file as for a cluster, worked off on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from flowstone.cli.manifests import request
from flowstone.cli.options import File, Form
from flowstone.cli.output import Output, console, show

Local = Annotated[bool, typer.Option("--local", help="Work it off on this machine instead of in a cluster.")]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="FLOWSTONE_DATABASE_URL",
        help="The ledger, with the login of flowstone_operator; default: a PostgreSQL that comes along.",
    ),
]
Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace; default: the file's, or default.")]
Folder = Annotated[Path | None, typer.Option("--folder", help="Where that PostgreSQL lies, with runs and logs.")]


def run(
    file: File,
    local: Local = False,
    database: Database = None,
    namespace: Namespace = None,
    folder: Folder = None,
    output: Form = Output.TABLE,
) -> None:
    """Work off a Backfill on this machine; the same command goes on where it was stopped."""
    if not local:
        raise typer.BadParameter("add --local; `flowstone backfill run` is for a cluster", param_hint="--local")
    asked = request(file, tenants=False)
    from flowstone.cli.local_session import Session, place  # imported late: no other command needs the engine

    with place(database, folder) as here:
        code, resource = asyncio.run(Session(here, asked, namespace, console(stderr=True)).run())
    show(resource, output)
    raise typer.Exit(code)
