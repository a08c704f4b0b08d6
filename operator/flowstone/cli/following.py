"""Waiting for a Backfill of a cluster, with a picture while it goes on and its final state printed at the end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import typer

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
    """Wait with a picture for people, and print how it ended in the form asked for.

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
    return code
