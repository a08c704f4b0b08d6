"""How a worker tells what became of each partition: what `work` and `exec` need, and the answer without a database.

Both ways of telling keep the same promise: what is reported stays reported when the process dies, and what is not
reported is worked on again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from flowstone.worker.failure import told
from flowstone.worker.log import Log
from flowstone.worker.termination import write_positions

Outcome = Literal["succeeded", "failed", "superseded"]
"""`superseded`: the partition is not this batch's any more; whatever was done for it is undone."""


class ReportsFullError(Exception):
    """Raised when no more outcomes fit; the partitions that are not reported are handed out again."""


class Reports(Protocol):
    """Where outcomes go."""

    def start(self) -> Mapping[str, int] | None:
        """Say that this worker reports; return the charged failures of each partition still to do.

        None means that the batch is not this worker's any more.
        """
        ...

    def inside(self, partition: str, call: Callable[[Any], None]) -> Outcome:
        """Run a call with the connection in whose transaction its success is recorded, and record how it ended."""
        ...

    def after(self, partition: str, call: Callable[[], None]) -> Outcome:
        """Run a call that has a connection of its own or none, and record afterwards how it ended."""
        ...

    def fail_all(self, error: str) -> None:
        """Record the same failure for every partition still to do."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class MessageReports:
    """Outcomes as intervals of positions in the container's termination message."""

    def __init__(self, partitions: Sequence[str], path: Path, log: Log) -> None:
        self._positions = {partition: position for position, partition in enumerate(partitions)}
        self._path = path
        self._log = log
        self._outcomes: dict[int, str] = {}

    def start(self) -> Mapping[str, int] | None:
        """Write a message without outcomes, and return all partitions."""
        self._write()
        return dict.fromkeys(self._positions, 0)

    def inside(self, partition: str, call: Callable[[Any], None]) -> Outcome:
        """Run a call without a connection, and record how it ended."""
        return self.after(partition, lambda: call(None))

    def after(self, partition: str, call: Callable[[], None]) -> Outcome:
        """Run a call, and record how it ended.

        Raises:
            ReportsFullError: the message cannot hold it.
        """
        error = ""
        try:
            call()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = told(self._log, partition, raised)
        self._outcomes[self._positions[partition]] = error
        self._write()
        return "failed" if error else "succeeded"

    def fail_all(self, error: str) -> None:
        """Record the same failure for every partition without an outcome."""
        for position in self._positions.values():
            self._outcomes.setdefault(position, error)
        self._write()

    def close(self) -> None:
        """Hold nothing."""

    def _write(self) -> None:
        message = write_positions(self._outcomes)
        if message is None:
            raise ReportsFullError
        # The file is mounted into the container, so it can be overwritten but not replaced.
        self._path.write_text(message, encoding="utf-8")
