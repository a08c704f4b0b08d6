"""`flowstone exec -- command`: any program, once for each partition of the batch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from typing import IO

from flowstone.partition.keys import KeyElement
from flowstone.worker.contract import Assignment
from flowstone.worker.failure import FunctionError, clipped
from flowstone.worker.keys import typed_key, values_of, window_of
from flowstone.worker.process import Surroundings
from flowstone.worker.reports import Outcome, Reports
from flowstone.worker.statements import RowKey, commit_sql
from flowstone.worker.work import each

_TAIL_BYTES = 1800
"""How much of the end of standard error is kept for the partition's error."""

_ORDERLY_END = 5.0
"""Seconds that a program has after SIGTERM; Kubernetes kills the pod some time later anyway."""


def execute(
    command: Sequence[str],
    assignment: Assignment,
    reports: Reports,
    environment: Mapping[str, str],
    around: Surroundings,
) -> int:
    """Run the command for each partition still to do; return how many were reported.

    Raises:
        LedgerUnavailable: the ledger cannot be reached any more.
    """
    pending = reports.start()
    if pending is None:
        around.log("batch.superseded")
        return 0

    def one(partition: str, attempt: int) -> Outcome:
        def run() -> None:
            run_command(command, {**environment, **variables(assignment, partition, attempt)})

        return reports.after(partition, run)

    return each(pending, one, around)


def variables(assignment: Assignment, partition: str, attempt: int) -> dict[str, str]:
    """Return what the program finds in its environment about a partition."""
    values = values_of(typed_key(partition, assignment.dimensions), assignment.dimensions)
    result = {"FLOWSTONE_PARTITION": partition, "FLOWSTONE_ATTEMPT": str(attempt)}
    for name, value in values.items():
        result["FLOWSTONE_PARTITION_" + re.sub(r"[^A-Z0-9]", "_", name.upper())] = _plain(value)
    window = window_of(values, assignment.dimensions)
    if window is not None:
        result["FLOWSTONE_WINDOW_START"], result["FLOWSTONE_WINDOW_END"] = map(_plain, window)
    if assignment.database:
        row = RowKey(assignment.scope, assignment.asset, partition, assignment.backfill, assignment.fence)
        result["FLOWSTONE_COMMIT_SQL"] = commit_sql(row)
    return result


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command to its end, passing on its standard error.

    Raises:
        FunctionError: it could not be started, or ended with another code than 0; with the end of its standard error.
    """
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    except (OSError, ValueError) as error:
        raise FunctionError(f"{command[0]!r} cannot be started: {error}; check the Asset's command.") from error
    with _Tail(process.stderr) as tail:
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code != 0:
        raise FunctionError(clipped(f"{_ended_with(code)}: {tail.text()}"))


class _Tail:
    """Passes a stream on to standard error and keeps its end."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def __enter__(self) -> _Tail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A grandchild may hold the stream open for ever; what came within a second is enough.
        self._thread.join(timeout=1)
        if self._stream is not None and not self._thread.is_alive():
            self._stream.close()

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip() or "nothing on standard error"

    def _pump(self) -> None:
        while self._stream is not None and (chunk := os.read(self._stream.fileno(), 65536)):
            self._kept = (self._kept + chunk)[-_TAIL_BYTES:]
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program with everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=_ORDERLY_END)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ended_with(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _plain(value: KeyElement) -> str:
    """Return an element as other programs like it: a string as it is, the rest as in keys."""
    if isinstance(value, datetime):
        return value.isoformat()[:19] + "Z"
    return value.isoformat() if isinstance(value, date) else value
