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
from flowstone.worker.process import StopSignal, Surroundings
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
            run_command(command, {**environment, **variables(assignment, partition, attempt)}, around.stop)

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


def run_command(command: Sequence[str], environment: Mapping[str, str], stop: StopSignal) -> None:
    """Run a command to its end, passing on its standard error.

    Raises:
        FunctionError: it could not be started, or ended with another code than 0; with the end of its standard error.
    """
    program = _Program(command, environment)
    try:
        with stop.held():  # a program that was started half would outlive its batch
            program.start()
        code = program.wait()
    except BaseException:
        program.end()
        raise
    if code != 0:
        raise FunctionError(clipped(f"{_ended_with(code)}: {program.last_words()}"))


class _Program:
    """A program in a group of its own, whose standard error is passed on and whose last words are kept."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._kept = b""
        self._pump: threading.Thread | None = None

    def start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stderr=subprocess.PIPE, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise FunctionError(
                f"{self._command[0]!r} cannot be started: {error}; check the Asset's command."
            ) from error
        self._pump = threading.Thread(target=self._pass_on, args=(self._process.stderr,), daemon=True)
        self._pump.start()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the started program and return its exit code."""
        if self._process is None or self._pump is None:
            raise FunctionError("The program was not started.")
        code = self._process.wait(timeout)
        # A grandchild may hold the stream open for ever; what came within a second is enough.
        self._pump.join(timeout=1)
        return code

    def end(self) -> None:
        """End the program, if it runs, with everything that it started."""
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.wait(_ORDERLY_END)
        with suppress(ProcessLookupError):  # as a rule nothing of the group is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()

    def last_words(self) -> str:
        return self._kept.decode("utf-8", "replace").strip() or "nothing on standard error"

    def _pass_on(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept = (self._kept + chunk)[-_TAIL_BYTES:]
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()


def _ended_with(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def _plain(value: KeyElement) -> str:
    """Return an element as other programs like it: a string as it is, the rest as in keys."""
    if isinstance(value, datetime):
        return value.isoformat()[:19] + "Z"
    return value.isoformat() if isinstance(value, date) else value
