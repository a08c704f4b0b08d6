"""Which partitions a Backfill asks for, and who has them first."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.cli.wanted import Ahead, ahead, stranger

Json = dict[str, Any]

TEMPLATE: Json = {"spec": {"containers": [{"name": "main", "image": "x"}]}}
ASSET: Json = {
    "metadata": {"name": "a", "namespace": "n"},
    "spec": {"partitionedBy": [{"name": "day", "type": "date"}], "template": TEMPLATE},
}


def backfill(name: str, first: str, last: str, minute: int, *, asset: str = "a", **status: object) -> Json:
    """A Backfill over some days, made in this minute."""
    return {
        "metadata": {"name": name, "namespace": "n", "creationTimestamp": f"2026-11-24T12:{minute:02}:00Z"},
        "spec": {"asset": asset, "partitions": {"day": {"from": first, "through": last}}},
        "status": {"phase": "Running", **status},
    }


MINE = backfill("mine", "2013-01-01", "2013-01-10", 5)
OVER: Json = {"conditions": [{"type": "Finished", "status": "True"}]}


def test_an_older_one_over_the_same_partitions_is_first() -> None:
    """It is named with its phase, and with how many partitions both ask for."""
    other = backfill("other", "2013-01-08", "2013-02-01", 4)
    assert ahead(MINE, [MINE, other], ASSET) == [Ahead("other", "Running", 3)]


@pytest.mark.parametrize(
    "other",
    [
        backfill("younger", "2013-01-01", "2013-01-10", 6, activeBatches=1),
        backfill("over", "2013-01-01", "2013-01-10", 4, **OVER),
        backfill("elsewhere", "2013-01-11", "2013-01-20", 4),
        backfill("of-another-asset", "2013-01-01", "2013-01-10", 4, asset="b"),
        backfill("not-valid", "2013-01-10", "2013-01-01", 4),
        backfill("of-the-same-second", "2013-01-01", "2013-01-10", 5),
    ],
    ids=lambda one: str(one["metadata"]["name"]),
)
def test_others_hold_nothing_up(other: Json) -> None:
    """Nobody is accused who has no partition of it first, or of whom that is not known."""
    assert ahead(MINE, [other], ASSET) == []


def test_of_two_of_one_second_the_one_with_batches_is_first() -> None:
    """Applied from one file they have the same time; `explain` asks for one that has none open."""
    twin = backfill("twin", "2013-01-01", "2013-01-10", 5, activeBatches=2)
    assert ahead(MINE, [twin], ASSET) == [Ahead("twin", "Running", 10)]


@pytest.mark.parametrize("text", ["zzz", "2013-01-11", "2013-02-30", ""])
def test_a_stranger_is_told_what_there_is(text: str) -> None:
    """What is no date at all, and what is one that was not asked for."""
    assert stranger(MINE, text, ASSET).startswith(
        "no such partition: the Backfill asks for 2013-01-01 to 2013-01-10 (10)"
    )


def test_its_own_partitions_are_no_strangers() -> None:
    """Neither is anything where the Asset does not fit any more, as then nothing is known."""
    assert stranger(MINE, "2013-01-10", ASSET) == ""
    assert stranger(MINE, "zzz", {"spec": {"partitionedBy": [], "template": TEMPLATE}}) == ""
