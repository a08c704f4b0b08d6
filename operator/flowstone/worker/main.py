"""The worker's process: arguments, signals, exit code.

Exit codes: 0 when every partition was reported or the batch was handed on; 2 for wrong arguments or a contract this
image does not speak; 75 (try again later) when the ledger could not be reached for minutes; 143 after SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.worker.log import line_log
from flowstone.worker.process import StopSignal, Surroundings

if TYPE_CHECKING:
    from flowstone.worker.contract import Assignment
    from flowstone.worker.reports import Reports

EXIT_USAGE = 2
EXIT_LEDGER_LOST = 75
EXIT_STOPPED = 143

_TERMINATION_LOG = "/dev/termination-log"
_USAGE = "usage: flowstone work package.module:function\n       flowstone exec -- command [argument ...]"


def main(verb: str, arguments: Sequence[str]) -> int:
    """Work off the batch of this container; return the process's exit code."""
    stop = StopSignal()
    stop.install()  # before the slow imports: process 1 of a container ignores SIGTERM until it has a handler
    log = line_log(sys.stdout, fence=os.environ.get("FLOWSTONE_FENCE", ""))
    try:
        return _run(verb, arguments, Surroundings(log, stop=stop))
    except LedgerUnavailable as error:
        log("batch.abandoned", error=str(error))
        _say_untouched()
        return EXIT_LEDGER_LOST
    except FlowStoneError as error:
        print(f"flowstone {verb}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        log("batch.stopped")
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)  # at once, whatever threads the user's code left behind


def _say_untouched() -> None:
    """Tell what reads the exit code that no partition is to blame, also when the ledger was never reached."""
    from flowstone.worker.termination import write_positions

    path = _termination_log()
    with suppress(OSError):
        if path.exists():  # elsewhere than in a pod there is none
            path.write_text(write_positions({}) or "")


def _termination_log() -> Path:
    return Path(os.environ.get("FLOWSTONE_TERMINATION_LOG", _TERMINATION_LOG))


def _run(verb: str, arguments: Sequence[str], around: Surroundings) -> int:
    command = list(arguments[1:]) if arguments[:1] == ["--"] else list(arguments)
    if not command or (verb == "work" and len(command) != 1) or command[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return EXIT_USAGE
    from flowstone.worker.contract import read_assignment

    assignment = read_assignment(os.environ)
    reports = _reports(assignment, around)
    try:
        _dispatch(verb, command, assignment, reports, around)
    finally:
        reports.close()
    return 0


def _dispatch(verb: str, command: list[str], assignment: Assignment, reports: Reports, around: Surroundings) -> None:
    if verb == "exec":
        from flowstone.worker.execute import execute

        execute(command, assignment, reports, os.environ, around)
        return
    from flowstone.worker.work import work

    sys.path.insert(0, os.getcwd())  # as `python -m` does; the console script's own folder stands there else
    work(command[0], assignment, reports, around)


def _reports(assignment: Assignment, around: Surroundings) -> Reports:
    if not assignment.database:
        from flowstone.worker.reports import MessageReports

        return MessageReports(assignment.partitions, _termination_log(), around.log)
    # Without a database the driver, which is most of the start-up time, is never imported.
    from flowstone.worker.ledger import LedgerReports
    from flowstone.worker.session import Session

    return LedgerReports(Session(around), assignment, around.log)
