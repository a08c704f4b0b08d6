"""Outcomes in the ledger: exactly once, however often connections break and batches change hands.

1. Success is recorded in the transaction in which the user's function wrote, by an update that names the fence. No row
   means that the partition was handed on, or is recorded already: everything is rolled back.
2. A function that ended the transaction it was given cannot be undone and must not be trusted: the transaction's id is
   compared, and the partition fails with a clear error.
3. When the connection breaks, nobody knows whether the commit took place, so the row is read before anything is done
   again. Should the old session still commit later, the update of the second try finds no running row, and is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, LiteralString, cast, get_args

from psycopg import Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from flowstone.worker import statements
from flowstone.worker.contract import Assignment
from flowstone.worker.failure import FunctionError, told
from flowstone.worker.log import Log
from flowstone.worker.reports import Outcome
from flowstone.worker.session import Session, put_back

Standing = Literal["succeeded", "failed", "superseded", "running"]

MAX_LOSSES = 5
"""Tries of one partition during which the connection broke, before the partition itself is held to be the cause."""

_TOUCHED = (
    "The function committed or rolled back the connection it was given, so its writes cannot be recorded together with"
    " its success. Leave the transaction to FlowStone; `with p.connection.transaction():` makes savepoints."
)
_ABORTED = (
    "The function returned although a statement had failed and aborted its transaction. Let the error be raised, or"
    " put the statement in `with p.connection.transaction():` so that only that part is undone."
)
_CLOSED = "The function closed the connection it was given. Leave it open; FlowStone uses it to record success."
_UNFINISHED = "The function returned while a statement on its connection was unfinished; read it to its end first."


class _LostError(Exception):
    """Raised when the connection broke, so that nobody knows whether the last commit took place."""


class LedgerReports:
    """Outcomes in the ledger's rows, under the batch's fence."""

    def __init__(self, session: Session, assignment: Assignment, log: Log) -> None:
        self._session = session
        self._assignment = assignment
        self._log = log
        self._batch = {
            "scope": assignment.scope,
            "asset": assignment.asset,
            "backfill": assignment.backfill,
            "fence": assignment.fence,
        }

    def start(self) -> Mapping[str, int] | None:
        """Mark the batch as reporting and return the charged failures of its running rows, in the batch's order."""
        if not self._session.ask(lambda link: _rows(link, statements.MARK_REPORTING, self._batch)):
            return None
        found = dict(self._session.ask(lambda link: _rows(link, statements.RUNNING, self._batch)))
        return {partition: found[partition] for partition in self._assignment.partitions if partition in found}

    def inside(self, partition: str, call: Callable[[Any], None]) -> Outcome:
        """Run a call in an open transaction and commit its success with what it wrote.

        Raises:
            LedgerUnavailable: the ledger cannot be reached any more.
        """
        for _ in range(MAX_LOSSES):
            try:
                return self._inside_once(partition, call)
            except _LostError as lost:
                self._log("connection.lost", partition=partition, error=str(lost.__cause__).strip())
            state = self._find(partition)
            if state != "running":
                return state
        return self._fail(partition, f"The connection broke {MAX_LOSSES} times while this partition was computed.")

    def after(self, partition: str, call: Callable[[], None]) -> Outcome:
        """Run a call and record its outcome afterwards, unless it recorded its success itself.

        Raises:
            LedgerUnavailable: the ledger cannot be reached any more.
        """
        state = self._find(partition)
        if state != "running":
            return state
        try:
            call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._fail(partition, told(self._log, partition, error))
        return self._settle(partition, statements.SUCCEED_AFTERWARDS, "succeeded")

    def fail_all(self, error: str) -> None:
        """Record the same failure for every running row of the batch."""
        values = {**self._batch, "error": error}
        self._session.ask(lambda link: _cursor(link).execute(statements.FAIL_ALL, values) and None)

    def close(self) -> None:
        """End the connection."""
        self._session.close()

    def _inside_once(self, partition: str, call: Callable[[Any], None]) -> Outcome:
        link = self._session.connection()
        try:
            transaction = self._begin(link, partition)
            if transaction is None:
                put_back(link)
                return self._found(partition)
            call(link)
            if not self._succeed(link, partition, transaction):
                put_back(link)
                return self._found(partition)
            link.commit()
        except KeyboardInterrupt:
            link.close()  # the server rolls back, and nothing here waits for it
            raise
        except BaseException as error:
            if link.broken:
                raise _LostError from error
            put_back(link)
            return self._fail(partition, told(self._log, partition, error))
        return "succeeded"

    def _begin(self, link: Connection[Any], partition: str) -> str | None:
        """Open the partition's transaction and return its id, or None when the row is not this batch's any more."""
        transaction, ours = _rows(link, statements.BEGIN, self._row(partition))[0]
        return str(transaction) if ours else None

    def _succeed(self, link: Connection[Any], partition: str, transaction: str) -> bool:
        """Record success in the open transaction; False when the row is not this batch's any more."""
        _check_untouched(link)
        values = {**self._row(partition), "transaction": transaction}
        if _rows(link, statements.SUCCEED, values):
            return True
        if not _rows(link, statements.SAME_TRANSACTION, {"transaction": transaction})[0][0]:
            raise FunctionError(_TOUCHED)
        return False

    def _fail(self, partition: str, error: str) -> Outcome:
        return self._settle(partition, statements.FAIL, "failed", error=error)

    def _settle(self, partition: str, statement: LiteralString, outcome: Outcome, **values: str) -> Outcome:
        """Record an outcome in a transaction of its own; when no row is running any more, tell what is recorded."""
        every = {**self._row(partition), **values}
        if self._session.ask(lambda link: _rows(link, statement, every)):
            return outcome
        return self._found(partition)

    def _found(self, partition: str) -> Outcome:
        state = self._find(partition)
        return "superseded" if state == "running" else state

    def _find(self, partition: str) -> Standing:
        rows = self._session.ask(lambda link: _rows(link, statements.FIND, self._row(partition)))
        state = rows[0][0] if rows else ""
        return cast(Standing, state) if state in get_args(Standing) else "superseded"

    def _row(self, partition: str) -> dict[str, Any]:
        return {**self._batch, "partition": partition}


def _check_untouched(link: Connection[Any]) -> None:
    if link.closed and not link.broken:
        raise FunctionError(_CLOSED)
    status = link.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise FunctionError(_ABORTED)
    if status == TransactionStatus.IDLE:
        raise FunctionError(_TOUCHED)
    if status == TransactionStatus.ACTIVE:
        raise FunctionError(_UNFINISHED)


def _rows(link: Connection[Any], statement: LiteralString, values: Mapping[str, Any]) -> list[Any]:
    return _cursor(link).execute(statement, values).fetchall()


def _cursor(link: Connection[Any]) -> Cursor[tuple[Any, ...]]:
    # Not link.cursor(): the user's function may have set other factories on the connection.
    return Cursor(link, row_factory=tuple_row)
