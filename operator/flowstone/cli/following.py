"""Waiting for a Backfill of a cluster, with a picture while it goes on and its final state printed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import typer
from rich.text import Text

from flowstone.cli.cluster import Cluster
from flowstone.cli.exits import Exit
from flowstone.cli.output import Output, console, show
from flowstone.cli.watching import picture, wait
from flowstone.kube import paths

Json = dict[str, Any]


def follow(cluster: Cluster, name: str, timeout: float | None, output: Output) -> NoReturn:
    """Wait, and end the command with the exit code that says how the Backfill ended."""
    raise typer.Exit(watched(cluster, name, timeout, output))


def watched(cluster: Cluster, name: str, timeout: float | None, output: Output) -> Exit:
    """Wait with a picture for people, and print how it ended in the form asked for, or that it is gone.

    Args:
        timeout: Seconds until waiting is given up, or None.
    """
    collection = paths.custom("backfills", cluster.namespace)
    until = None if timeout is None else datetime.now(UTC) + timedelta(seconds=timeout)
    last: list[Json] = []

    def states() -> Iterator[Json]:
        for state in cluster.follow(collection, name, until=until):
            last[:] = [state]
            yield state

    with picture(console(stderr=output is not Output.TABLE)) as draw:
        code = wait(states(), draw, until=until, clock=lambda: datetime.now(UTC))
    show(last[0], output)
    if code is not None:
        return code
    words = gone(last[0], cluster.find(collection, name))
    console(stderr=True).print(Text.assemble(("error: ", "bold red"), words), soft_wrap=True)
    return Exit.REFUSED


def gone(last: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    """What to say of a Backfill that was deleted while it was waited for.

    Args:
        last: It as it was seen last.
        now: Another one that has its name now, or None.
    """
    meta = last["metadata"]
    words = f"Backfill {meta['namespace']}/{meta['name']} was deleted meanwhile"
    if now is None:
        again = "`flowstone backfill run -f FILE` asks for it again, and with select: Missing only what is missing runs"
        return f"{words}, which stops its Jobs; what is done stays known: {again}"
    watch = f"`flowstone backfill watch {meta['name']} -n {meta['namespace']}` watches that"
    return f"{words}, and another one has its name since {now['metadata']['creationTimestamp']}: {watch}"
