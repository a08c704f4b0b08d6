"""The console script: workers start fast, everything else is a command line with help and colours."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `flowstone` with the process's arguments and end with its exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["work"] or arguments[:1] == ["exec"]:
        # A worker's start counts for each batch, so nothing of the command line is imported for it.
        from flowstone.worker.main import main as worker

        sys.exit(worker(arguments[0], arguments[1:]))
    from flowstone.cli.app import main as commands

    sys.exit(commands(arguments))
