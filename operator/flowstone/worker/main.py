"""The worker's process: arguments, signals, exit code.

Exit codes: 0 when every partition was reported or the batch was handed on; 2 for wrong arguments or a contract this
image does not speak; 75 (try again later) when the ledger could not be reached for minutes; 143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.worker.log import Log, line_log
from flowstone.worker.reports import MessageReports, Reports, Stopped

if TYPE_CHECKING:
    from flowstone.worker.contract import Assignment

EXIT_USAGE = 2
EXIT_LEDGER_LOST = 75
EXIT_STOPPED = 143

_TERMINATION_LOG = Path("/dev/termination-log")
_USAGE = "usage: flowstone work package.module:function\n       flowstone exec -- command [argument ...]"


def main(verb: str, arguments: Sequence[str]) -> int:
    """Work off the batch of this container; return the process's exit code."""
    # Process 1 of a container ignores SIGTERM until it has a handler, so this comes before the slow imports.
    signal.signal(signal.SIGTERM, _stop)
    log = line_log(sys.stdout, fence=os.environ.get("FLOWSTONE_FENCE", ""))
    try:
        return _run(verb, arguments, log)
    except LedgerUnavailable as error:
        log("batch.abandoned", error=str(error))
        return EXIT_LEDGER_LOST
    except FlowStoneError as error:
        print(f"flowstone {verb}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        log("batch.stopped")
        _leave(EXIT_STOPPED)


def _run(verb: str, arguments: Sequence[str], log: Log) -> int:
    command = list(arguments[1:]) if arguments[:1] == ["--"] else list(arguments)
    if not command or (verb == "work" and len(command) != 1) or command[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr)
        return EXIT_USAGE
    from flowstone.worker.contract import read_assignment

    assignment = read_assignment(os.environ)
    reports = _reports(assignment, log)
    try:
        _dispatch(verb, command, assignment, reports, log)
    finally:
        reports.close()
    return 0


def _dispatch(verb: str, command: list[str], assignment: Assignment, reports: Reports, log: Log) -> None:
    if verb == "exec":
        from flowstone.worker.execute import execute

        execute(command, assignment, reports, os.environ, log, time.monotonic)
        return
    from flowstone.worker.work import work

    sys.path.insert(0, os.getcwd())  # as `python -m` does; the console script's own folder stands there else
    work(command[0], assignment, reports, log, time.monotonic)


def _reports(assignment: Assignment, log: Log) -> Reports:
    if not assignment.database:
        return MessageReports(assignment.partitions, _TERMINATION_LOG)
    # Without a database the driver, which is most of the start-up time, is never imported.
    from flowstone.worker.ledger import LedgerReports
    from flowstone.worker.session import Session, Timing

    return LedgerReports(Session(Timing(), log), assignment, log)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the tidying up
    raise Stopped


def _leave(code: int) -> NoReturn:
    """End at once, whatever threads the user's code left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
