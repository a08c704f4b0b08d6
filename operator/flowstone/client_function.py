"""Backfills of a Python function: what can run in processes of this machine, and running it to the end."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date, datetime
from typing import Any

from flowstone.api.backfill import BackfillSpec
from flowstone.backfill.local import Interrupts, Pass
from flowstone.backfill.plan import Plan
from flowstone.backfill.records import NewBackfill
from flowstone.backfill.request import Request
from flowstone.backfill.standing import Standing
from flowstone.backfill.tenancy import Admission, KnownTenant
from flowstone.errors import InvalidPartition, InvalidSpec, LedgerBusy, LedgerRefused
from flowstone.executor.jobs import Work, job_prefix
from flowstone.executor.program import function_program
from flowstone.local import LocalJob, LocalMachine
from flowstone.partition import Dimension, Key, PartitionSet
from flowstone.partition.dimensions import DimensionType
from flowstone.worker.context import Partition

Function = Callable[[Partition], Any]
Described = list[dict[str, str | None]]

_REMEDY = "write it at the top level of a module, and import it here: each batch runs in a new process that imports it"


def target_of(function: Function) -> str:
    """Return `module:name` of a function that a new process can import.

    Raises:
        InvalidSpec: It is a lambda, nested, bound, partly applied, or defined in the program itself.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or module == "__main__" or "<" in name:
        raise InvalidSpec("function", function, _REMEDY)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise InvalidSpec("function", function, _REMEDY)
    return f"{module}:{name}"


def described(keys: Sequence[Key] | PartitionSet) -> Described:
    """Return the dimensions of keys as workers are told them; a set names its own, other keys say their types.

    Raises:
        InvalidPartition: Keys of different types, or a time off the full hour.
    """
    dimensions = keys.dimensions if isinstance(keys, PartitionSet) else _inferred(keys)
    return [{"name": one.name, "type": one.type, "unit": one.unit, "timezone": one.timezone} for one in dimensions]


def _inferred(keys: Sequence[Key]) -> tuple[Dimension, ...]:
    first = _elements(keys[0]) if len(keys) else ("",)
    names = ["partition"] if len(first) == 1 else [f"partition_{place}" for place in range(1, len(first) + 1)]
    dimensions = tuple(Dimension(name, _type(element)) for name, element in zip(names, first, strict=True))
    for key in keys:
        elements = _elements(key)
        if len(elements) != len(dimensions):
            raise InvalidPartition("partitions: the keys have different numbers of elements: use keys of one type")
        for dimension, element in zip(dimensions, elements, strict=True):
            dimension.check(element)
    return dimensions


def _elements(key: Key) -> Sequence[Any]:
    return key if isinstance(key, tuple) else (key,)


def _type(element: object) -> DimensionType:
    if isinstance(element, datetime):
        return "datetime"
    return "date" if isinstance(element, date) else "string"


def job_of(new: NewBackfill, asset_id: str, target: str, dimensions: Described, tenant: KnownTenant | None) -> LocalJob:
    """Return the job of a backfill that is queued already.

    Args:
        new: The backfill as it was registered; its spec has maxParallel and batchSize.
        asset_id: The asset's id.
        target: `module:name` of the function.
        dimensions: As `described` returns them.
        tenant: Whose work it is, once a guard let it; None for nobody's.
    """
    # Constructed, not validated: an asset's id such as daily_report is no name of a resource, and need not be one.
    spec = BackfillSpec.model_construct(
        asset=asset_id,
        max_parallel=new.spec["maxParallel"],
        batch_size=new.spec["batchSize"],
        select=new.spec["select"],
    )
    request = Request(new.uid, new.namespace, new.name, spec, dict(new.spec), job_prefix(new.name, new.uid))
    work = Work(new.name, new.namespace, new.uid, asset_id, new.asset, dimensions, {})

    async def admit() -> Admission:
        return Admission() if tenant is None else Admission({tenant.scope: tenant})

    return LocalJob(request, work, function_program(target), _no_plan, admit, path=_python_path())


async def _no_plan() -> Plan:
    raise LedgerRefused("backfill: it is not queued any more: was the ledger restored? Run it again")


def _python_path() -> list[str]:
    """Where this process finds modules, so that the others find the same."""
    return [entry or os.getcwd() for entry in sys.path]


def work_off(machine: LocalMachine, job: LocalJob, abandoned: Sequence[str], tell: Callable[[], None]) -> None:
    """Run a backfill to its end; `tell` is called in this thread whenever something may have changed.

    Args:
        machine: Where it runs.
        job: The backfill.
        abandoned: Uids of backfills that are closed first, unless their program still lives.
        tell: Told of each pass.

    Raises:
        LedgerBusy: It would have to wait for a backfill that nobody works on.

    Whatever is raised here meanwhile, Ctrl-C too, stops the processes first; what they had not done goes back.
    """
    interrupts, news = Interrupts(), queue.SimpleQueue[bool]()

    async def show(found: Pass) -> None:
        if found.waiting is not None and not found.waiting.worked_on:
            raise LedgerBusy(found.standing.message)
        news.put(True)

    async def everything() -> Standing:
        for uid in abandoned:
            await machine.forget_dead(uid, job)
        return await machine.run(job, interrupts=interrupts, show=show)

    def over(ended: Future[Standing]) -> None:
        news.put(False)

    # A thread of its own: a notebook's main thread has an event loop already.
    with ThreadPoolExecutor(1, thread_name_prefix="flowstone") as pool:
        ended = pool.submit(asyncio.run, everything())
        ended.add_done_callback(over)
        try:
            while news.get():
                tell()
        except BaseException:
            interrupts.ask()
            interrupts.ask()
            raise
    ended.result()


def listed(keys: Iterable[Key] | PartitionSet) -> Sequence[Key] | PartitionSet:
    """Return the keys as something that has a length."""
    return keys if isinstance(keys, Sequence | PartitionSet) else list(keys)
