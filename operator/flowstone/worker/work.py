"""`flowstone work package.module:function`: one call for each partition of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowstone.worker.context import Partition
from flowstone.worker.contract import Assignment
from flowstone.worker.failure import FunctionError, told
from flowstone.worker.keys import typed_key, values_of, window_of
from flowstone.worker.load import Function, call, load
from flowstone.worker.process import Stopped, Surroundings
from flowstone.worker.reports import Outcome, Reports, ReportsFullError


def work(target: str, assignment: Assignment, reports: Reports, around: Surroundings) -> int:
    """Call the function for each partition still to do; return how many were reported.

    Raises:
        LedgerUnavailable: the ledger cannot be reached any more.
    """
    function = _loaded(target)  # before the start: a module that kills its process is the fault of no partition
    pending = reports.start()
    if pending is None:
        around.log("batch.superseded")
        return 0
    if isinstance(function, FunctionError):
        reports.fail_all(told(around.log, None, function))
        around.log("batch.failed", partitions=len(pending))
        return len(pending)

    def one(partition: str, attempt: int) -> Outcome:
        return reports.inside(partition, lambda link: call(function, context(assignment, partition, attempt, link)))

    return each(pending, one, around)


def _loaded(target: str) -> Function | FunctionError:
    try:
        return load(target)
    except FunctionError as error:
        return error


def each(pending: Mapping[str, int], one: Callable[[str, int], Outcome], around: Surroundings) -> int:
    """Do one after the other, with its attempt counted from 1, until all are reported or the batch was handed on.

    Raises:
        Stopped: the process was asked to stop, and the user's code went on.
    """
    around.log("batch.started", partitions=len(pending))
    counts: dict[Outcome, int] = {"succeeded": 0, "failed": 0, "superseded": 0}
    whole = around.stopwatch()
    for partition, charged in pending.items():
        if around.stop.came:
            raise Stopped
        seconds = around.stopwatch()
        try:
            outcome = one(partition, charged + 1)
        except ReportsFullError:
            around.log("reports.full", partition=partition)
            break
        counts[outcome] += 1
        around.log(f"partition.{outcome}", partition=partition, attempt=charged + 1, seconds=seconds())
        if outcome == "superseded":
            break
    around.log("batch.ended", **counts, seconds=whole())
    return counts["succeeded"] + counts["failed"]


def context(assignment: Assignment, partition: str, attempt: int, link: Any) -> Partition:
    """Return what the user's function is given for a partition."""
    key = typed_key(partition, assignment.dimensions)
    values = values_of(key, assignment.dimensions)
    return Partition(
        key=key,
        text=partition,
        values=values,
        window=window_of(values, assignment.dimensions),
        tenant=assignment.tenant,
        attempt=attempt,
        asset=assignment.asset_id,
        backfill=assignment.backfill_name,
        _connection=link,
    )
