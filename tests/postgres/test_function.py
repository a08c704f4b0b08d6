"""`backfills.run(..., function=f)`: a Python function over all partitions, in child processes."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flowstone.client import FlowStone
from flowstone.client_backfills import BackfillStatus
from flowstone.errors import InvalidPartition, InvalidSpec, LedgerBusy
from flowstone.partition import Dimension, explicit
from flowstone.tenant_context import with_tenant
from tests.conformance.processes_world import processes_of
from tests.postgres import local_code
from tests.postgres.conftest import Place

pytestmark = pytest.mark.postgres

DAYS = [date(2025, 1, 1) + timedelta(days=n) for n in range(10)]


@pytest.fixture
def stone(place: Place, tmp_path: Path) -> Iterator[FlowStone]:
    """A client of a fresh ledger, with a folder of its own for runs."""
    with FlowStone.connect(place.operator, folder=tmp_path, create_tenants=True) as stone:
        yield stone


@contextmanager
def most_alive(ids: list[str]) -> Iterator[list[int]]:
    """Note how many batches of the first of these backfills have processes, seen from outside, while the block runs."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            if ids:
                seen.append(len({fence for _, fence in processes_of(ids[0])}))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_a_hundred_partitions_at_most_five_at_a_time(stone: FlowStone) -> None:
    """With max_parallel=5 never more than five batches have a process, seen from outside, and five do at times."""
    ids: list[str] = []

    def note(status: BackfillStatus) -> None:
        ids[:] = [status.id]

    with most_alive(ids) as seen:
        id = stone.backfills.run(
            "daily_report",
            partitions=[f"p{n}" for n in range(100)],
            max_parallel=5,
            function=local_code.nothing,
            progress=note,
        )
    status = stone.backfills.status(id)
    assert ids == [id]
    assert (status.phase, status.total, status.succeeded) == ("Succeeded", 100, 100)
    assert max(seen) == 5


def test_the_function_writes_once_in_the_transaction_that_records(stone: FlowStone, place: Place) -> None:
    """It is given typed keys and their window, and what it writes is there exactly once per partition."""
    with place.connect() as admin:
        admin.execute("CREATE TABLE public.noted (key text, type text, tenant text, start text)")
        admin.execute("GRANT INSERT ON public.noted TO flowstone_namespace")
    stone.backfills.run("daily_report", partitions=DAYS, batch_size=4, function=local_code.note)
    assert sorted(place.all("SELECT * FROM public.noted")) == [
        (day.isoformat(), "date", None, f"{day}T00:00:00+00:00") for day in DAYS
    ]


def test_the_same_again_runs_only_what_is_missing(stone: FlowStone) -> None:
    """A second run over more days skips those that are done."""
    stone.backfills.run("r", partitions=DAYS[:4], batch_size=4, function=local_code.on_a_day)
    status = stone.backfills.status(
        stone.backfills.run("r", partitions=DAYS, batch_size=10, function=local_code.on_a_day)
    )
    assert (status.succeeded, status.skipped, status.phase) == (6, 4, "Succeeded")


def test_nothing_is_left_of_what_went_well(stone: FlowStone, tmp_path: Path) -> None:
    """After a success no folder of a run remains, only the login's private password."""
    stone.backfills.run("r", partitions=["a", "b"], function=local_code.nothing)
    left = [path for path in (tmp_path / "local").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {"logins"}
    assert {path.stat().st_mode & 0o077 for path in left if path.name != "lock"} == {0}


def test_sets_name_their_own_dimensions(stone: FlowStone, place: Place) -> None:
    """Keys of a set with a weekly dimension have a week's window; the asset's dimensions need not be guessed."""
    with place.connect() as admin:
        admin.execute("CREATE TABLE public.noted (key text, type text, tenant text, start text)")
        admin.execute("GRANT INSERT ON public.noted TO flowstone_namespace")
    weeks = explicit([Dimension("region", "string"), Dimension("week", "date", "week")], ["eu|2025-01-06"])
    stone.backfills.run("r", partitions=weeks, function=local_code.note)
    assert place.all("SELECT * FROM public.noted") == [("eu|2025-01-06", "tuple", None, "2025-01-06T00:00:00+00:00")]


def test_a_tenants_work_is_done_under_the_tenants_login(stone: FlowStone, place: Place) -> None:
    """Inside `with_tenant` the worker is told the tenant, and logs in as one of that tenant's roles."""
    with place.connect() as admin:
        admin.execute("CREATE TABLE public.noted (key text, type text, tenant text, start text)")
        admin.execute("GRANT INSERT ON public.noted TO flowstone_tenant")
    with with_tenant("acme"):
        id = stone.backfills.run("r", partitions=["a"], function=local_code.note)
        assert stone.backfills.status(id).phase == "Succeeded"
    assert place.all("SELECT key, tenant FROM public.noted") == [("a", "acme")]
    assert place.all("SELECT left(role_name, 3), tenant_id FROM flowstone.login_scope") == [("tn_", "acme")]


async def test_it_runs_where_an_event_loop_runs(stone: FlowStone) -> None:
    """A notebook's cell runs inside an event loop; the function is worked off all the same."""
    id = stone.backfills.run("r", partitions=["a"], function=local_code.nothing)
    assert stone.backfills.status(id).succeeded == 1


def nested() -> Callable[..., None]:
    """A function that no other process can import."""

    def inner(partition: Any) -> None:
        """Do nothing."""

    return inner


@pytest.mark.parametrize(
    "function",
    [
        lambda p: None,
        nested(),
        local_code.Home().method,
        functools.partial(local_code.nothing),
        "tests.postgres.local_code:nothing",
    ],
    ids=["lambda", "nested", "bound", "partial", "text"],
)
def test_what_no_new_process_can_import_is_refused(stone: FlowStone, place: Place, function: Any) -> None:
    """The message says where to write it, and nothing is queued."""
    with pytest.raises(InvalidSpec, match="at the top level of a module"):
        stone.backfills.run("r", partitions=["a"], function=function)
    assert place.all("SELECT 1 FROM flowstone.backfill") == []


@pytest.mark.parametrize("keys", [["a", ("a", "b")], [DAYS[0], "b"], [datetime(2025, 1, 1, 14, 30, tzinfo=UTC)]])
def test_keys_that_are_not_of_one_type_are_refused(stone: FlowStone, place: Place, keys: list[Any]) -> None:
    """Mixed shapes, mixed types and times off the full hour are refused before anything is queued."""
    with pytest.raises(InvalidPartition):
        stone.backfills.run("r", partitions=keys, function=local_code.nothing)
    assert place.all("SELECT 1 FROM flowstone.backfill") == []


class LookedEnoughError(Exception):
    """The caller wants to leave."""


def test_leaving_stops_the_processes_and_cancels_the_rest(stone: FlowStone) -> None:
    """An exception in the caller's thread, as Ctrl-C is one, ends the processes; nothing stays queued or running."""
    seen: list[str] = []

    def leave(status: BackfillStatus) -> None:
        if {fence for _, fence in processes_of(status.id)}:
            seen.append(status.id)
            raise LookedEnoughError

    with pytest.raises(LookedEnoughError):
        stone.backfills.run("r", partitions=["a", "b", "c"], max_parallel=2, function=local_code.slow, progress=leave)
    status = stone.backfills.status(seen[0])
    assert (status.phase, status.cancelled) == ("Cancelled", 3)
    assert processes_of(seen[0]) == []


def test_a_queued_backfill_that_nobody_works_on_is_named(stone: FlowStone) -> None:
    """An earlier `run` without a function holds the partitions: the error names it, and after a cancel it goes on."""
    earlier = stone.backfills.run("r", partitions=["a", "b"])
    with pytest.raises(LedgerBusy, match=f"{earlier}.*has the same partitions.*cancel it"):
        stone.backfills.run("r", partitions=["b", "c"], function=local_code.nothing)
    stone.backfills.cancel(earlier)
    id = stone.backfills.run("r", partitions=["b", "c"], function=local_code.nothing)
    assert stone.backfills.status(id).phase == "Succeeded"  # c may have been made before the refusal


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with SIGINT ignored
from flowstone import FlowStone
from tests.postgres import local_code
with FlowStone.connect(sys.argv[1], folder=sys.argv[2]) as stone:
    stone.backfills.run("r", partitions=["a", "b"], function=getattr(local_code, sys.argv[3]))
"""


@contextmanager
def program(place: Place, folder: Path, function: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs a function over a and b."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", PROGRAM, place.operator, str(folder), function]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            yield process
        finally:
            process.kill()


def running_backfill(place: Place) -> str:
    """The uid of the first backfill, once both of its partitions have a process."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for (uid,) in place.all("SELECT uid::text FROM flowstone.backfill ORDER BY seq"):
            if len({fence for _, fence in processes_of(uid)}) == 2:
                return str(uid)
        time.sleep(0.05)
    raise AssertionError("no two processes within 60 s")


def test_after_a_killed_program_the_next_run_does_what_is_missing(
    stone: FlowStone, place: Place, tmp_path: Path
) -> None:
    """What a killed program left queued and running is ended by the next run of the asset, and not waited for."""
    with program(place, tmp_path, "slow") as killed:
        left = running_backfill(place)
        killed.kill()
    assert processes_of(left) != []
    id = stone.backfills.run("r", partitions=["a", "b"], function=local_code.nothing)
    assert stone.backfills.status(id).succeeded == 2
    assert (stone.backfills.status(left).phase, processes_of(left)) == ("Cancelled", [])


def test_ctrl_c_stops_and_cancels(place: Place, tmp_path: Path) -> None:
    """SIGINT ends the program as Python does, after its processes have ended and the rest is cancelled."""
    with program(place, tmp_path, "slow") as interrupted:
        uid = running_backfill(place)
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(60) == -signal.SIGINT
    assert processes_of(uid) == []
    states = place.all("SELECT DISTINCT state FROM flowstone.materialization WHERE backfill = %s", uid)
    assert states == [("cancelled",)]
