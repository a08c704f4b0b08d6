"""How long a backfill waits when batch after batch ends in vain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flowstone.backfill.patience import blockage, rounds, wait
from flowstone.backfill.records import Vain

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def vain(*spans: tuple[int, int], outcome: str = "disrupted: Evicted") -> list[Vain]:
    """Batches by the seconds of their opening and closing, the last to close first."""
    made = [Vain(NOON + timedelta(seconds=begin), NOON + timedelta(seconds=end), outcome) for begin, end in spans]
    return sorted(made, key=lambda one: one.closed_at, reverse=True)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ((), 0),
        (((0, 5),), 1),
        (((0, 5), (0, 6), (1, 7)), 1),
        (((0, 5), (5, 9), (9, 12)), 3),
        (((0, 5), (6, 9), (6, 8)), 2),
    ],
)
def test_batches_side_by_side_are_one_round(spans: tuple[tuple[int, int], ...], expected: int) -> None:
    """Twenty batches on a node that went away are one misfortune, twenty one after the other are twenty."""
    assert rounds(vain(*spans)) == expected


@pytest.mark.parametrize(("number", "seconds"), [(0, 0), (2, 0), (3, 10), (4, 20), (6, 80), (9, 600), (10_000, 600)])
def test_the_wait_doubles_up_to_ten_minutes(number: int, seconds: int) -> None:
    """Two rounds in vain cost no time."""
    assert wait(number) == timedelta(seconds=seconds)


def test_a_command_that_cannot_be_started_is_told_of_at_once() -> None:
    """It will not get better by itself: after the first round already the next try waits, longer each time."""
    said = "unstarted: exit code 128 (StartError): exec: nope: not found"
    once = blockage(vain((0, 1), outcome=said), NOON + timedelta(seconds=2))
    assert once is not None
    assert (once.reason, once.halts) == ("CreateFailed", True)
    assert once.message == (
        "its command cannot be started: exit code 128 (StartError): exec: nope: not found; the next try is in 9 s"
    )
    assert blockage(vain((0, 1), outcome=said), NOON + timedelta(seconds=11)) is None
    assert blockage(vain((0, 1), (11, 12), outcome=said), NOON + timedelta(seconds=31)) is not None


def test_people_are_told_why_nothing_is_handed_out() -> None:
    """While it waits the reason is told, with the last one's own words; then something is handed out again."""
    three = vain((0, 1), (1, 2), (2, 3), outcome="returned: exit code 75")
    found = blockage(three, NOON + timedelta(seconds=5))
    assert found is not None
    assert (found.reason, found.waiting) == ("NoProgress", False)
    assert found.message.startswith("3 times in a row")
    assert "last: exit code 75" in found.message
    assert found.message.endswith("the next try is in 8 s")
    assert blockage(three, NOON + timedelta(seconds=13)) is None
    assert blockage(vain((0, 1), (1, 2)), NOON + timedelta(seconds=2)) is None
