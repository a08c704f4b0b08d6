"""Ranges: both ends, steps, alignment, laziness, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import InvalidPartition, InvalidRange, PartitionError, UnknownZone
from flowstone.partition import Key, Range, generate_range, serialize


def utc(*parts: int) -> datetime:
    """Return a datetime in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]  # at most seven


def test_both_ends_are_included() -> None:
    """1 to 5 January is five days."""
    days = generate_range(date(2025, 1, 1), date(2025, 1, 5), "day")
    assert len(days) == 5
    assert list(days) == [date(2025, 1, day) for day in (1, 2, 3, 4, 5)]
    assert days == [date(2025, 1, day) for day in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("start", "stop", "step", "texts"),
    [
        (date(2025, 1, 1), date(2025, 1, 1), "day", "2025-01-01"),
        (date(2025, 1, 6), date(2025, 1, 26), "week", "2025-01-06 2025-01-13 2025-01-20"),
        (date(2024, 12, 30), date(2025, 1, 30), "2 weeks", "2024-12-30 2025-01-13 2025-01-27"),
        (date(2025, 1, 1), date(2025, 4, 30), "month", "2025-01-01 2025-02-01 2025-03-01 2025-04-01"),
        (date(2024, 11, 1), date(2025, 3, 31), "2 months", "2024-11-01 2025-01-01 2025-03-01"),
        (date(2025, 4, 1), date(2025, 12, 31), "quarter", "2025-04-01 2025-07-01 2025-10-01"),
        (date(2024, 1, 1), date(2026, 12, 31), "year", "2024-01-01 2025-01-01 2026-01-01"),
        (date(2000, 1, 1), date(2025, 1, 1), "10 years", "2000-01-01 2010-01-01 2020-01-01"),
        (date(2024, 2, 28), date(2024, 3, 3), "2 days", "2024-02-28 2024-03-01 2024-03-03"),
        (
            utc(2025, 1, 1, 22),
            utc(2025, 1, 2, 1, 59),
            "hour",
            "2025-01-01T22:00:00Z 2025-01-01T23:00:00Z 2025-01-02T00:00:00Z 2025-01-02T01:00:00Z",
        ),
        (
            utc(2025, 1, 1, 3),
            utc(2025, 1, 1, 20),
            "6 hours",
            "2025-01-01T03:00:00Z 2025-01-01T09:00:00Z 2025-01-01T15:00:00Z",
        ),
        (utc(2025, 1, 1), utc(2025, 2, 1, 1), "month", "2025-01-01T00:00:00Z 2025-02-01T00:00:00Z"),
        (date(9999, 12, 30), date(9999, 12, 31), "day", "9999-12-30 9999-12-31"),
        (date(9999, 1, 1), date(9999, 12, 31), "year", "9999-01-01"),
        (date(1, 1, 1), date(1, 1, 8), "week", "0001-01-01 0001-01-08"),
    ],
)
def test_points_of_a_range(start: date, stop: date, step: str, texts: str) -> None:
    """A range goes from its start in steps of the calendar to the last point not after its stop."""
    made = generate_range(start, stop, step)
    assert [serialize(key) for key in made] == texts.split()
    assert len(made) == len(texts.split())


def test_one_element_of_a_tuple_is_stepped() -> None:
    """The element in which start and stop differ is stepped, wherever it stands."""
    made = generate_range(("a", date(2025, 1, 1), "z"), ("a", date(2025, 1, 3), "z"), "day")
    assert list(made) == [("a", date(2025, 1, day), "z") for day in (1, 2, 3)]
    assert ("a", date(2025, 1, 2), "z") in made
    assert ("b", date(2025, 1, 2), "z") not in made
    assert date(2025, 1, 2) not in made
    assert generate_range((date(2025, 1, 1),), (date(2025, 1, 2),), "day")[-1] == (date(2025, 1, 2),)


def test_equal_tuples_are_a_range_of_one() -> None:
    """When nothing differs the last date or datetime is stepped, once."""
    key = ("a", date(2025, 1, 1))
    assert list(generate_range(key, key, "day")) == [key]


def test_datetime_of_another_zone_is_the_same_instant() -> None:
    """Ends and members are compared as instants, and keys come back in UTC."""
    berlin = datetime.fromisoformat("2025-01-01T01:00:00+01:00")
    made = generate_range(berlin, utc(2025, 1, 1, 2), "hour")
    assert serialize(made[0]) == "2025-01-01T00:00:00Z"
    assert made[0].tzinfo is UTC  # type: ignore[union-attr]  # a datetime
    assert berlin in made


_STEPS = st.tuples(st.integers(1, 40), st.sampled_from(["day", "week", "month", "quarter", "year"]))


def _naive(start: date, stop: date, count: int, unit: str) -> list[date]:
    """Walk day by day and keep every count-th day on which the unit begins."""
    begins: Callable[[date], bool] = {
        "day": lambda day: True,
        "week": lambda day: day.isoweekday() == 1,
        "month": lambda day: day.day == 1,
        "quarter": lambda day: day.day == 1 and day.month in (1, 4, 7, 10),
        "year": lambda day: day.day == 1 and day.month == 1,
    }[unit]
    days = [start + timedelta(days=place) for place in range((stop - start).days + 1)]
    return [day for day in days if begins(day)][::count]


def _floor(day: date, unit: str) -> date:
    while _naive(day, day, 1, unit) != [day]:
        day -= timedelta(days=1)
    return day


@given(st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.integers(0, 3000), _STEPS)
def test_dates_are_those_of_a_walk_through_the_calendar(day: date, length: int, step: tuple[int, str]) -> None:
    """Length, members, places and the sequence itself equal a naive walk, day by day."""
    start = _floor(day, step[1])
    stop = start + timedelta(days=length)
    expected = _naive(start, stop, *step)
    made = generate_range(start, stop, f"{step[0]} {step[1]}s")
    assert list(made) == expected
    assert [made[place] for place in range(len(made))] == expected
    assert list(reversed(made)) == expected[::-1]
    members = set(expected)
    for place in range(-3, min(length, 400) + 3):
        probe = start + timedelta(days=place)
        assert (probe in made) == (probe in members)
    assert [made.index(value) for value in expected] == list(range(len(expected)))


_ENDS = st.none() | st.integers(-60, 60)


@given(st.integers(1, 50), _ENDS, _ENDS, st.none() | st.integers(-7, 7).filter(bool))
def test_slices_are_those_of_a_list(length: int, low: int | None, high: int | None, stride: int | None) -> None:
    """Every slice is a lazy range with the members a list's slice has, and can be sliced again."""
    made = generate_range(date(2025, 1, 1), date(2025, 1, 1) + timedelta(days=length - 1), "day")
    plain, cut = list(made), made[low:high:stride]
    assert isinstance(cut, Range)
    assert list(cut) == plain[low:high:stride]
    assert list(cut[::-1]) == plain[low:high:stride][::-1]
    assert [day in cut for day in plain] == [day in plain[low:high:stride] for day in plain]


def test_a_range_is_not_built() -> None:
    """All hours of all years are there at once: length, an element far in, membership."""
    made = generate_range(utc(1, 1, 1), utc(9999, 12, 31, 23), "hour")
    assert len(made) == 3_652_059 * 24
    assert made[-1] == utc(9999, 12, 31, 23)
    assert made.index(utc(2025, 1, 1)) == (date(2025, 1, 1).toordinal() - 1) * 24
    assert utc(2025, 1, 1, 0, 30) not in made


@pytest.mark.parametrize(
    "probe", [None, 1, "2025-01-01", (date(2025, 1, 1),), utc(2025, 1, 1), [date(2025, 1, 1)], datetime(2025, 1, 1)]
)
def test_what_is_no_key_of_the_range_is_not_in_it(probe: object) -> None:
    """`in` never raises; a datetime is not taken for a date."""
    made = generate_range(date(2025, 1, 1), date(2025, 1, 5), "day")
    assert probe not in made
    assert made.count(probe) == 0
    with pytest.raises(ValueError, match="not in"):
        made.index(probe)


@pytest.mark.parametrize("place", [5, -6])
def test_place_outside_is_an_index_error(place: int) -> None:
    """Indexing behaves as it does for any sequence."""
    with pytest.raises(IndexError):
        generate_range(date(2025, 1, 1), date(2025, 1, 5), "day")[place]


@pytest.mark.parametrize(
    ("start", "stop", "step", "remedy"),
    [
        (date(2025, 1, 5), date(2025, 1, 1), "day", "reversed; write the earlier one first"),
        (date(2025, 1, 1), date(2025, 2, 1), "week", "not a Monday.*2024-12-30 and 2025-01-06"),
        (date(2025, 1, 2), date(2025, 2, 1), "month", "2025-01-01 and 2025-02-01"),
        (date(2025, 2, 1), date(2025, 3, 1), "quarter", "2025-01-01 and 2025-04-01"),
        (date(2025, 2, 1), date(2025, 3, 1), "year", "2025-01-01 and 2026-01-01"),
        (date(9999, 12, 31), date(9999, 12, 31), "month", "nearest are 9999-12-01"),
        (utc(2025, 1, 1, 14, 30), utc(2025, 1, 2), "hour", "full hour.*T14:00:00Z and 2025-01-01T15:00:00Z"),
        (utc(2025, 1, 1, 22), utc(2025, 1, 2), "day", "2025-01-02T00:00:00Z.*timezone="),
        (date(2025, 1, 1), date(2025, 1, 2), "hour", "no hours; use a datetime"),
        (date(2025, 1, 1), utc(2025, 1, 2), "day", "different types"),
        (date(2025, 1, 1), (date(2025, 1, 2),), "day", "numbers of elements"),
        (("a", date(2025, 1, 1)), (date(2025, 1, 2),), "day", "numbers of elements"),
        (("a", date(2025, 1, 1)), ("b", date(2025, 1, 2)), "day", "differ in 2 elements.*product"),
        (("a", date(2025, 1, 1)), ("b", date(2025, 1, 1)), "day", "no steps; list the values"),
        ("a", "b", "day", "no steps; list the values"),
        (("a", "b"), ("a", "b"), "day", "no date or datetime"),
    ],
)
def test_refusal_of_a_range_says_what_to_write(start: Key, stop: Key, step: str, remedy: str) -> None:
    """Each pair that makes no range is refused with a remedy; off the grid the nearest points are named."""
    with pytest.raises(InvalidRange, match=remedy):
        generate_range(start, stop, step)


@pytest.mark.parametrize(
    "step",
    [
        "minute",
        "",
        "0 days",
        "-1 days",
        "1.5 days",
        "01 days",
        "2  weeks",
        " day",
        "Day",
        "2weeks",
        "1000000 days",
        None,
        1,
        "days days",
    ],
)
def test_unknown_step_is_refused(step: object) -> None:
    """The message lists the units."""
    with pytest.raises(InvalidRange, match="write hour, day, week, month, quarter or year"):
        generate_range(date(2025, 1, 1), date(2025, 1, 2), step)  # type: ignore[arg-type]  # the test is about what does not fit


@pytest.mark.parametrize(
    "name", ["Europe/Berln", "europe/berlin", "", "../etc/passwd", "/etc/localtime", "CEST", "\x00", None, 1]
)
def test_unknown_zone_is_refused(name: object) -> None:
    """A zone is a name of the IANA database, never a file of the machine."""
    with pytest.raises(UnknownZone, match="IANA"):
        generate_range(date(2025, 1, 1), date(2025, 1, 2), "day", timezone=name)  # type: ignore[arg-type]  # see above


def test_misspelt_zone_is_answered_with_those_that_look_alike() -> None:
    """The remedy names Europe/Berlin."""
    with pytest.raises(UnknownZone, match="Europe/Berlin"):
        generate_range(date(2025, 1, 1), date(2025, 1, 2), "day", timezone="europe/berln")


@pytest.mark.parametrize("key", [None, 1, "", datetime(2025, 1, 1), utc(2025, 1, 1, 0, 0, 0, 5)])
def test_ends_that_are_no_keys_are_refused(key: object) -> None:
    """Start and stop are held to the rules of keys."""
    with pytest.raises(InvalidPartition):
        generate_range(key, date(2025, 1, 2), "day")  # type: ignore[arg-type]  # see above
    with pytest.raises(PartitionError):
        generate_range(date(2025, 1, 1), key, "day")  # type: ignore[arg-type]  # see above
