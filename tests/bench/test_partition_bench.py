"""What partitions cost: each figure is a ratio or a bound of the issue, measured and printed in one run.

pytest -s tests/bench/test_partition_bench.py
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from time import perf_counter

import pytest

from flowstone.partition import (
    Dimension,
    PartitionSet,
    deserialize,
    generate_range,
    product,
    range_of,
    serialize,
    values_of,
)

MILLION = 1_000_000
AXES = (Dimension("hour", "datetime"), Dimension("day", "date"), Dimension("name", "string"))


def best(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the shortest of several runs in seconds: the one that the machine's other work disturbed least."""
    times = []
    for _ in range(rounds):
        gc.collect()
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


def drain(some: Iterable[object]) -> int:
    """Walk through an iterable and return how many there were, keeping none."""
    return sum(1 for _ in some)


def large(combinations: int) -> PartitionSet:
    """Return a set of more than 10^12 keys in three dimensions, without some combinations of two of them."""
    hours = range_of(AXES[0], "2000-01-01T00:00:00Z", before="2010-01-01T00:00:00Z")
    days = range_of(AXES[1], "2000-01-01", through="2009-12-31").without(["2004-02-29"])
    names = values_of(AXES[2], [f"n{place:04d}" for place in range(4000)])
    first = date(2001, 1, 1)
    gone = [
        {"day": serialize(first + timedelta(days=place)), "name": f"n{place:04d}"}
        if place % 2
        else {"hour": f"2001-01-{1 + place % 28:02d}T{place % 24:02d}:00:00Z", "name": f"n{place:04d}"}
        for place in range(combinations)
    ]
    return product(AXES, [hours, days, names], gone)


@pytest.mark.parametrize("combinations", [0, 1000])
def test_access_to_a_set_of_a_million_million_is_under_50_microseconds(combinations: int) -> None:
    """len, [10**11], text and `in` are arithmetic, with and without 1,000 excluded combinations."""
    begun = perf_counter()
    made = large(combinations)
    built = perf_counter() - begun
    assert len(made) > 10**12
    key = made[10**11]
    missing = (key[0], date(2004, 2, 29), "n0001")  # type: ignore[index]  # a tuple
    calls: dict[str, Callable[[], object]] = {
        "len": lambda: len(made),
        "[10**11]": lambda: made[10**11],
        "text(10**11)": lambda: made.text(10**11),
        "in": lambda: key in made,
        "not in": lambda: missing not in made,
    }
    print(f"\n10^12 keys, {combinations} combinations excluded, built in {built * 1000:.1f} ms")
    for name, call in calls.items():
        each = best(lambda call=call: [call() for _ in range(1000)]) / 1000 * 1e6  # type: ignore[misc]  # bound at once
        print(f"  {name:14s} {each:6.2f} µs")
        assert each < 50


def test_serializing_dates_costs_at_most_three_times_isoformat() -> None:
    """1,000,000 dates, both measured in this run."""
    dates = [date.fromordinal(600_000 + place) for place in range(MILLION)]
    plain = best(lambda: [day.isoformat() for day in dates])
    ours = best(lambda: [serialize(day) for day in dates])
    print(f"\nserialize / isoformat = {ours / plain:.2f}  ({ours:.3f} s / {plain:.3f} s per million)")
    assert ours <= 3 * plain


def test_a_million_texts_of_a_set() -> None:
    """Texts for planning come faster than serializing keys one by one; both are printed."""
    hours = generate_range(date(1, 1, 1), date(2738, 1, 1), "day")
    one = product([AXES[1]], [range_of(AXES[1], "0001-01-01", through="2737-11-28")])
    made = large(0)[:MILLION]
    single, triple = best(lambda: drain(one.iter_text()), 3), best(lambda: drain(made.iter_text()), 3)
    keyed = best(lambda: drain(map(serialize, made)), 1)
    back = best(lambda: drain(deserialize(text, date) for text in one.iter_text()), 1)
    print(f"\n{len(one)} dates {single:.2f} s, {len(made)} triples {triple:.2f} s, serialized one by one {keyed:.2f} s")
    print(f"dates read back {back:.2f} s, {len(hours)} days of a range walked {best(lambda: drain(hours), 1):.2f} s")
    assert triple < keyed


def _peak(some: Iterator[object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        drain(some)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_iterating_holds_constant_memory() -> None:
    """Ten times as many keys need no more memory, as keys and as texts; a million stay under 3 MB."""
    made = large(1000)
    for name, walk in [("keys", PartitionSet.__iter__), ("texts", PartitionSet.iter_text)]:
        few, many = _peak(walk(made[: MILLION // 10])), _peak(walk(made[:MILLION]))
        print(f"\niterating {name}: {few} bytes for 100,000, {many} bytes for 1,000,000")
        assert many < 1.1 * few + 10_000
        assert many < 3_000_000
