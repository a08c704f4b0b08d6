"""The console script: workers start fast, everything else is a command line with help and colours."""

from __future__ import annotations

import os
import signal
import sys

TERMINATED = 143
"""Exit code after SIGTERM: 128 + 15."""


def _leave(*_: object) -> None:
    os._exit(TERMINATED)


def main() -> None:
    """Run `flowstone` with the process's arguments and end with its exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["work"] or arguments[:1] == ["exec"]:
        # A pod's first process ignores SIGTERM unless it has a handler, and would sit out its grace period.
        signal.signal(signal.SIGTERM, _leave)
        # A worker's start counts for each batch, so nothing of the command line is imported for it.
        from flowstone.worker.main import main as worker

        sys.exit(worker(arguments[0], arguments[1:]))
    from flowstone.cli.app import main as commands

    sys.exit(commands(arguments))
