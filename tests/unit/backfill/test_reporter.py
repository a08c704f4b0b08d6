"""Which standings people are told of by an Event, and how often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog

from flowstone.backfill.edges.reporter import COMPLAINT_PAUSE, Reporter
from flowstone.backfill.records import Counts
from flowstone.backfill.standing import Stand, Standing
from flowstone.backfill.status import Report
from tests.postgres.tenant.memory_kube import MemoryKube

PATH = "/apis/flowstone.dev/v1alpha1/namespaces/n/backfills/b"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
RUNNING = Standing(Stand.RUNNING, "Running", "0 of 9 partitions finished")


class World:
    """A Backfill, and a replica that reports its standings, one each minute or as the test says."""

    def __init__(self) -> None:
        self.kube = MemoryKube()
        metadata = {"name": "b", "namespace": "n", "creationTimestamp": "2026-11-24T12:00:00Z"}
        self.kube.put(PATH, {"kind": "Backfill", "metadata": metadata, "spec": {"asset": "a"}})
        self.seconds = 0.0
        log = structlog.get_logger()
        self.reporter = Reporter(self.kube, log, now=self.now, clock=lambda: self.seconds, instance="replica-1")

    def now(self) -> datetime:
        """The time of the story."""
        return NOON + timedelta(seconds=self.seconds)

    async def stands(self, *standings: Standing, apart: float = 60) -> None:
        """It has these standings, one after the other."""
        for one in standings:
            read = await self.kube.get(PATH)
            assert read is not None
            assert await self.reporter.report(read, Report(one, Counts(total=9, queued=9), 1, "Accepted"))
            self.seconds += apart

    @property
    def told(self) -> list[tuple[str, str]]:
        """Severity and reason of each Event so far."""
        return [(event["type"], event["reason"]) for event in self.kube.events]


@pytest.fixture
def world() -> World:
    """A Backfill that nobody has reported on."""
    return World()


def suspended(batches: int) -> Standing:
    """Suspended by its spec, with so many batches still open."""
    return Standing(Stand.SUSPENDED, "SuspendedBySpec", f"{batches} batches run to their end")


def short_of(cpu: int) -> Standing:
    """No room on any node for more than ten minutes, in the scheduler's changing words."""
    return Standing(Stand.WAITING, "Waiting", f"0/9 nodes are available: {cpu} Insufficient cpu.")


def behind(finished: int) -> Standing:
    """Running, and handed nothing because of an older one."""
    return Standing(Stand.RUNNING, "WaitsForBackfill", f"{finished} of 9 partitions finished; Backfill a has the same")


def blocked(reason: str, message: str = "why") -> Standing:
    """Blocked by the platform."""
    return Standing(Stand.BLOCKED, reason, message)


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ([RUNNING, suspended(3), suspended(2), suspended(0)], ("Normal", "SuspendedBySpec")),
        ([RUNNING, short_of(9), short_of(8)], ("Normal", "Waiting")),
        ([RUNNING, behind(0), behind(1)], ("Normal", "WaitsForBackfill")),
        ([RUNNING, blocked("ImagePull"), blocked("ImagePull", "why else")], ("Warning", "ImagePull")),
        ([RUNNING, Standing(Stand.SUCCEEDED, "Succeeded", "all done")], ("Normal", "Succeeded")),
    ],
    ids=["suspended", "waiting", "behind", "blocked", "succeeded"],
)
async def test_a_standing_is_told_once_when_it_begins(
    world: World, standings: list[Standing], expected: tuple[str, str]
) -> None:
    """Not again while it lasts, though its message changes; that it goes on as it should is not told."""
    await world.stands(*standings)
    assert world.told == [expected]


async def test_what_people_ask_for_again_is_told_again(world: World) -> None:
    """Suspended, resumed and suspended within minutes."""
    await world.stands(suspended(3), RUNNING, suspended(3))
    assert world.told == [("Normal", "SuspendedBySpec")] * 2


@pytest.mark.parametrize(
    "others", [[short_of(9), short_of(8)], [behind(0), behind(1)], [blocked("LedgerUnreachable")] * 2]
)
async def test_what_comes_and_goes_by_itself_is_told_every_ten_minutes(world: World, others: list[Standing]) -> None:
    """A full cluster, or a database that comes and goes, makes no storm of Events."""
    first, again = others
    await world.stands(first, RUNNING, again, RUNNING, first, RUNNING)
    assert len(world.told) == 1
    world.seconds = COMPLAINT_PAUSE
    await world.stands(first)
    assert len(world.told) == 2


async def test_what_is_blocked_otherwise_is_told_at_once(world: World) -> None:
    """Another image that is not there either is news."""
    await world.stands(blocked("ImagePull", "a"), RUNNING, blocked("ImagePull", "b"))
    assert [event["note"] for event in world.kube.events] == ["a", "b"]


async def test_what_cannot_be_told_by_a_status_is_told_every_ten_minutes(world: World) -> None:
    """Each pass meets it; one Event says it."""
    for _ in range(3):
        await world.reporter.complain("n", "b", blocked("RBAC"))
    assert world.told == [("Warning", "RBAC")]
