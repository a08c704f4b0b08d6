"""Standing and status: the design's tables, written out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.api.backfill_status import BackfillStatus
from flowstone.backfill.outcome import Unheard
from flowstone.backfill.records import CommonError, Counts, Failure, Interval, OpenBatch, Retry
from flowstone.backfill.sizing import PLENTY, batch_size, open_slots
from flowstone.backfill.standing import Stand, Standing, goes_on, judge
from flowstone.backfill.status import Details, Json, Report, compose, differs, intervals_text
from flowstone.executor.port import Blockage, Running, View

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def report(stand: Stand, *, counts: Counts | None = None, ready_when: str = "Accepted") -> Report:
    """A report of generation 3 without details."""
    return Report(Standing(stand, str(stand), "why"), counts, 3, ready_when, "ExactlyOnce")


def truths(status: Json) -> dict[str, str]:
    """The conditions as type -> status."""
    return {c["type"]: c["status"] for c in status["conditions"]}


TABLE = [
    (Stand.PLANNING, "Planning", "Ready=Unknown Succeeded=Unknown Finished=False Reconciling=True"),
    (Stand.ASSET_MISSING, "Planning", "Ready=False Succeeded=Unknown Finished=False Reconciling=True"),
    (Stand.INVALID, "Blocked", "Ready=False Succeeded=Unknown Finished=False Stalled=True"),
    (Stand.RUNNING, "Running", "Ready=True Succeeded=Unknown Finished=False Blocked=False Suspended=False"),
    (Stand.SUSPENDED, "Suspended", "Ready=True Succeeded=Unknown Finished=False Suspended=True"),
    (Stand.BUDGET_PASSED, "Suspended", "Ready=False Succeeded=Unknown Finished=False Stalled=True Suspended=True"),
    (Stand.BLOCKED, "Blocked", "Ready=False Succeeded=Unknown Finished=False Blocked=True"),
    (Stand.WAITING, "Running", "Ready=True Succeeded=Unknown Finished=False Blocked=True"),
    (Stand.SUCCEEDED, "Succeeded", "Ready=True Succeeded=True Finished=True"),
    (Stand.PARTLY_FAILED, "PartlyFailed", "Ready=False Succeeded=False Finished=True Stalled=True"),
    (Stand.FAILED, "Failed", "Ready=False Succeeded=False Finished=True Stalled=True"),
    (Stand.CANCELLED, "Cancelled", "Ready=True Succeeded=False Finished=True"),
]


@pytest.mark.parametrize(("stand", "phase", "expected"), TABLE, ids=[row[0].name for row in TABLE])
def test_phase_and_conditions_are_those_of_the_table(stand: Stand, phase: str, expected: str) -> None:
    """Each state has exactly the conditions of its row, each with all six fields."""
    status = compose(report(stand), {}, NOW)
    assert status["phase"] == phase
    assert truths(status) == dict(pair.split("=") for pair in expected.split())
    for condition in status["conditions"]:
        assert sorted(condition) == [
            "lastTransitionTime",
            "message",
            "observedGeneration",
            "reason",
            "status",
            "type",
        ]


def test_ready_when_finished_holds_ready_back() -> None:
    """A pipeline that waits for Ready then waits for the end."""
    assert truths(compose(report(Stand.RUNNING, ready_when="Finished"), {}, NOW))["Ready"] == "False"
    assert truths(compose(report(Stand.SUCCEEDED, ready_when="Finished"), {}, NOW))["Ready"] == "True"


def test_blocked_for_five_minutes_is_stalled() -> None:
    """The clock runs from when Blocked became true, however often the status was written since."""
    first = compose(report(Stand.BLOCKED), {}, NOW)
    early = compose(report(Stand.BLOCKED), first, NOW + timedelta(minutes=4, seconds=59))
    late = compose(report(Stand.BLOCKED), early, NOW + timedelta(minutes=5))
    assert "Stalled" not in truths(early)
    assert truths(late)["Stalled"] == "True"


def test_transition_times_move_only_with_the_truth() -> None:
    """A new reason keeps the time, another truth sets it."""
    first = compose(report(Stand.RUNNING), {}, NOW)
    later = compose(report(Stand.BLOCKED), first, NOW + timedelta(minutes=1))
    times = {c["type"]: c["lastTransitionTime"] for c in later["conditions"]}
    assert times["Finished"] == "2026-11-24T12:00:00Z"
    assert times["Blocked"] == "2026-11-24T12:01:00Z"


def test_what_is_over_keeps_the_rate_it_ended_with() -> None:
    """The rate of late fades to nothing after the end; a status that is over is not written again for it."""
    counts = Counts(total=10, succeeded=10)

    def composed(stand: Stand, rate: float, previous: dict[str, object]) -> dict[str, object]:
        details = Details(failures=(), succeeded="", failed="", rate=rate)
        return compose(replace(report(stand, counts=counts), details=details), previous, NOW)

    running = composed(Stand.RUNNING, 70.0, {})
    over = composed(Stand.SUCCEEDED, 51.4, running)
    assert over["rate"] == 51.4
    for later in (50.0, 0.0):
        assert composed(Stand.SUCCEEDED, later, over) == over


def test_numbers_that_could_not_be_read_stay() -> None:
    """Without a ledger the counts of before are better than zeros."""
    first = compose(report(Stand.RUNNING, counts=Counts(total=4, queued=3, succeeded=1)), {}, NOW)
    later = compose(report(Stand.BLOCKED), first, NOW)
    assert (later["counts"], later["progress"]) == (first["counts"], 25)


def test_the_largest_status_fits_and_is_valid() -> None:
    """Ten long failures and long summaries stay under 16 KiB, and the schema's model accepts them."""
    failures = [Failure("p" * 512, "e" * 5000, "j" * 60, 3)] * 20
    details = Details(failures, 12.34, "a" * 5000, "b" * 5000)
    counts = Counts(total=10**12, queued=10**12)
    full = Report(Standing(Stand.RUNNING, "Running", "m" * 9000), counts, 1, "Accepted", "AtLeastOnce", 5, details)
    status = compose(full, {}, NOW)
    assert len(json.dumps(status).encode()) < 16 * 1024
    assert BackfillStatus.model_validate(status).progress == 0


def test_progress_alone_can_wait_and_a_new_reason_cannot() -> None:
    """The same, only numbers moved, or something happened."""
    one = compose(report(Stand.RUNNING, counts=Counts(total=2, queued=2)), {}, NOW)
    two = compose(report(Stand.RUNNING, counts=Counts(total=2, queued=1, succeeded=1)), one, NOW)
    three = compose(report(Stand.BLOCKED), two, NOW)
    assert (differs(one, one), differs(one, two), differs(two, three)) == ("no", "progress", "yes")


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 2))
def test_a_backfill_is_finished_exactly_when_nothing_is_open(
    queued: int, succeeded: int, failed: int, cancelled: bool, batches: int
) -> None:
    """No row queued or running, and no batch whose Job may still act."""
    counts = Counts(total=queued + succeeded + failed, queued=queued, succeeded=succeeded, failed=failed)
    standing = judge(counts, open_batches=batches, cancelled=cancelled)
    assert standing.finished == (queued == 0 and batches == 0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(total=3, succeeded=3), Stand.SUCCEEDED),
        (Counts(total=3, skipped=3), Stand.SUCCEEDED),
        (Counts(total=3, succeeded=2, failed=1), Stand.PARTLY_FAILED),
        (Counts(total=3, skipped=2, failed=1), Stand.PARTLY_FAILED),
        (Counts(total=3, failed=3), Stand.FAILED),
        (Counts(total=3, succeeded=2, cancelled=1), Stand.CANCELLED),
    ],
)
def test_how_it_ended(counts: Counts, expected: Stand) -> None:
    """Which of the four ends it is follows from the counts."""
    assert judge(counts, open_batches=0, cancelled=counts.cancelled > 0).stand is expected


def test_what_is_over_is_not_cancelled_any_more() -> None:
    """`cancel` on a Backfill that failed changes nothing but the way to try again."""
    counts = Counts(total=3, succeeded=2, failed=1)
    common = CommonError("KeyError: 1", 1)
    before = judge(counts, open_batches=0, cancelled=False, common=common)
    after = judge(counts, open_batches=0, cancelled=True, common=common)
    assert (before.stand, after.stand) == (Stand.PARTLY_FAILED, Stand.PARTLY_FAILED)
    start = "2 succeeded, 1 failed of 3; most frequent error (1 times): KeyError: 1; see status.failures; "
    assert before.message == f"{start}set spec.retryFailed to a new value to try them again"
    assert after.message == f"{start}create another Backfill with select: Failed to try them again"


def test_an_error_is_shown_while_its_partition_waits_for_another_attempt() -> None:
    """Nothing failed for good yet, but people see what goes wrong, and when it is tried again."""
    retry = Retry(NOW.replace(hour=12, minute=3, second=9), "exit code 9: cannot\nreach " + "x" * 400)
    told = judge(Counts(total=6, queued=6), open_batches=0, cancelled=False, retry=retry).message
    assert told.startswith("0 of 6 partitions finished, 0 batches are out; the next retry is at 12:03:09 UTC, after ")
    assert told.endswith("this error: exit code 9: cannot reach " + "x" * 273 + "…")


def test_waiting_for_room_is_shown_after_ten_minutes() -> None:
    """Unschedulable pods are everyday life for a while; a missing image is not."""
    counts = Counts(total=1, running=1)
    room = Blockage("Unschedulable", "0/1 nodes", waiting=True)
    soon = judge(counts, open_batches=1, cancelled=False, blockage=room, waited=timedelta(minutes=9))
    late = judge(counts, open_batches=1, cancelled=False, blockage=room, waited=timedelta(minutes=10))
    image = judge(counts, open_batches=1, cancelled=False, blockage=Blockage("ImagePull", "no such image"))
    assert (soon.stand, late.stand, late.reason) == (Stand.RUNNING, Stand.WAITING, "Waiting")
    assert (image.stand, image.reason) == (Stand.BLOCKED, "ImagePull")


def test_waiting_for_room_is_told_at_once() -> None:
    """People read how many batches wait, in the scheduler's words, long before that is shown as a condition."""
    room = Blockage("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.", waiting=True)
    soon = judge(Counts(total=9, running=9), open_batches=3, cancelled=False, blockage=room, started=1)
    assert soon.stand is Stand.RUNNING
    told = "0 of 9 partitions finished, 3 batches are out, 2 of them wait to start: 0/1 nodes are available: 1 Insuff"
    assert soon.message == f"{told}icient cpu."


QUOTA = Blockage("QuotaExceeded", "exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1")


TENANT = Blockage("TenantNotReady", "Tenant acme: it has not been provisioned yet", partial=True)


@pytest.mark.parametrize("started", [1, 0])
def test_a_quota_that_lets_some_through_blocks_nothing(started: int) -> None:
    """While batches run, or did a moment ago, it goes on, and the API server's words say what holds it back."""
    counts = Counts(total=9, running=8, succeeded=1)
    found = judge(counts, open_batches=3, cancelled=False, blockage=QUOTA, started=started, moving=True)
    assert (found.stand, found.reason) == (Stand.RUNNING, "Running")
    assert found.message.endswith(f"3 batches are out, {3 - started} of them wait to start: {QUOTA.message}")


def test_a_tenant_that_is_waited_for_blocks_no_other() -> None:
    """While others' batches run it goes on, and the message names the tenant."""
    counts = Counts(total=9, queued=3, running=6)
    found = judge(counts, open_batches=3, cancelled=False, blockage=TENANT, started=3, moving=True)
    assert (found.stand, found.reason) == (Stand.RUNNING, "Running")
    assert found.message == f"0 of 9 partitions finished, 3 batches are out, some are held up: {TENANT.message}"


@pytest.mark.parametrize("why", [QUOTA, TENANT])
def test_what_lets_nothing_through_blocks(why: Blockage) -> None:
    """So does whatever concerns all batches, though some still run."""
    counts, image = Counts(total=9, running=9), Blockage("ImagePull", "no such image")
    none = judge(counts, open_batches=3, cancelled=False, blockage=why)
    other = judge(counts, open_batches=3, cancelled=False, blockage=image, started=2, moving=True)
    assert (none.stand, none.reason, none.message) == (Stand.BLOCKED, why.reason, why.message)
    assert (other.stand, other.reason) == (Stand.BLOCKED, "ImagePull")


@pytest.mark.parametrize(
    ("run", "seconds", "by_quota", "by_tenant"),
    [
        (Running(ready=True), 60, True, True),
        (Running(), 7, True, True),
        (Running(), 8, False, True),
        (Unheard(ready=True), 1, False, False),
    ],
    ids=["runs", "about to start", "slow to start", "unheard of"],
)
def test_which_batches_go_on(run: Running, seconds: int, by_quota: bool, by_tenant: bool) -> None:
    """One that is slow to start is what a quota holds back; a tenant that is waited for holds back no other's."""
    one = OpenBatch(1, "n/c/n", "b-1", "uid", "digest", False, 2, 2, 0, NOW - timedelta(seconds=seconds))
    seen = [View(one, run, launched=True)]
    assert (goes_on([one], seen, QUOTA, NOW), goes_on([one], seen, TENANT, NOW)) == (by_quota, by_tenant)


def test_a_batch_that_was_just_handed_out_goes_on_once_it_has_a_run() -> None:
    """It is not among those that were looked at; one whose Job was refused has none."""
    one = OpenBatch(1, "n/c/n", "b-1", "uid", "digest", False, 2, 2, 0, NOW)
    assert goes_on([one], [], QUOTA, NOW)
    assert not goes_on([replace(one, job_uid=None)], [], QUOTA, NOW)


def test_what_a_quota_lets_through_is_written_when_there_is_time() -> None:
    """Used and free pods change all the time: that is progress, and no reason for a write or an Event of its own."""

    def composed(blockage: Blockage | None, previous: Json) -> Json:
        counts = Counts(total=9, running=9)
        found = judge(counts, open_batches=3, cancelled=False, blockage=blockage, started=2, moving=True)
        return compose(Report(found, counts, 3, "Accepted"), previous, NOW)

    first = composed(QUOTA, {})
    assert [differs(first, composed(one, first)) for one in (QUOTA, None)] == ["no", "progress"]


def test_intervals_for_people() -> None:
    """Runs as first..last, singles alone, the number of partitions at the end."""
    runs = [Interval("2013-01-01", "2013-03-31", 90), Interval("2013-04-02", "2013-04-02", 1)]
    assert intervals_text(runs) == "2013-01-01..2013-03-31, 2013-04-02 (91)"
    assert intervals_text([]) == ""


@pytest.mark.parametrize(
    ("wanted", "queued", "slots", "pace", "expected"),
    [
        (7, 1000, 20, None, 7),
        (None, 365, 20, None, 19),
        (None, 5, 20, None, 1),
        (None, 1_000_000, 20, None, 50),
        (None, 1_000_000, 20, 0.001, 10_000),
        (None, 1_000_000, 20, 0.5, 120),
        (None, 1_000_000, 20, 3600.0, 1),
        (None, 100, 20, 0.001, 10_000),
        (None, 400, 20, 1.0, 20),
        (None, 100, 20, 1.0, 20),
        (None, 100, 20, 30.0, 2),
    ],
)
def test_batch_size(wanted: int | None, queued: int, slots: int, pace: float | None, expected: int) -> None:
    """The spec decides; else an even share, bounded by a careful first guess or by the measured pace.

    At 60 s a batch, one of an even share still lasts 20 s, so that starting it costs little.
    """
    assert batch_size(wanted, queued=queued, slots=slots, seconds_per_partition=pace) == expected


@given(
    queued=st.integers(1, 3_000_000),
    slots=st.integers(1, 10_000),
    pace=st.none() | st.floats(0, 100_000),
    wanted=st.none() | st.integers(1, 10_000),
)
def test_only_so_many_waiting_partitions_matter(
    queued: int, slots: int, pace: float | None, wanted: int | None
) -> None:
    """Counting what waits up to slots times the largest size gives the same batches as counting all of it."""
    largest = batch_size(wanted, queued=PLENTY, slots=slots, seconds_per_partition=pace)
    counted = min(queued, slots * largest)
    assert batch_size(wanted, queued=counted, slots=slots, seconds_per_partition=pace) == batch_size(
        wanted, queued=queued, slots=slots, seconds_per_partition=pace
    )


@pytest.mark.parametrize(
    ("slots", "known", "oldest", "expected"),
    [(20, False, None, 4), (20, False, 4.9, 4), (20, False, 5.0, 20), (20, True, None, 20), (2, False, None, 2)],
)
def test_a_few_batches_go_ahead(slots: int, known: bool, oldest: float | None, expected: int) -> None:
    """While nothing is measured four batches are out, for five seconds at most."""
    assert open_slots(slots, known=known, oldest=oldest) == expected


def test_control_characters_of_an_error_do_not_reach_a_terminal() -> None:
    """Escape sequences and directional marks are shown, not obeyed; line ends stay."""
    details = Details([Failure("k", "a\x1b[31mb\u202ec\nd", "j", 1)])
    full = Report(Standing(Stand.RUNNING, "Running", "m"), Counts(total=1), 1, "Accepted", details=details)
    assert compose(full, {}, NOW)["failures"][0]["error"] == "a\\x1b[31mb\\u202ec\nd"
