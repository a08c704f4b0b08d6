"""Time zones: days and hours around changes of the clock are neither lost nor twice, and windows adjoin exactly."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from flowstone.errors import InvalidPartition, InvalidRange
from flowstone.partition import (
    Dimension,
    Key,
    Span,
    Window,
    explicit,
    generate_range,
    product,
    range_of,
    serialize,
    values_of,
)
from flowstone.partition.zones import datetime_of, seconds_of, zone

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=seconds) for seconds in (1, 60, 3600, 86400))


def instant(text: str) -> datetime:
    """Return a datetime in UTC."""
    return datetime.fromisoformat(text)


def windows_of(dimension: Dimension, keys: Iterable[Key]) -> list[Window]:
    """Return the windows of keys that have one."""
    found = [dimension.window(key) for key in keys]
    return [window for window in found if window is not None]


@pytest.mark.parametrize(
    ("name", "day", "hours"),
    [
        ("Europe/Berlin", "2025-03-30", 23),
        ("Europe/Berlin", "2025-10-26", 25),
        ("Europe/Berlin", "2025-06-01", 24),
        ("America/New_York", "2025-03-09", 23),
        ("America/New_York", "2025-11-02", 25),
        ("Australia/Lord_Howe", "2025-10-05", 23.5),
        ("Australia/Lord_Howe", "2025-04-06", 24.5),
        ("Pacific/Apia", "2011-12-29", 24),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("America/Sao_Paulo", "2018-02-17", 25),
        ("UTC", "2025-03-30", 24),
    ],
)
def test_length_of_a_local_day(name: str, day: str, hours: float) -> None:
    """The window of a date is as long as that day was by the clocks of the zone."""
    window = Dimension("day", "date", timezone=name).window(date.fromisoformat(day))
    assert window is not None
    assert window.end - window.start == hours * HOUR


@pytest.mark.parametrize(
    ("name", "day", "start"),
    [
        ("Europe/Berlin", "2025-03-30", "2025-03-29T23:00:00Z"),
        ("America/New_York", "2025-11-02", "2025-11-02T04:00:00Z"),
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00Z"),  # 00:00 was skipped: the day began at 01:00
        ("America/Sao_Paulo", "2018-02-18", "2018-02-18T03:00:00Z"),  # 23:00 was shown twice the evening before
        ("America/St_Johns", "2010-11-07", "2010-11-07T02:30:00Z"),  # 00:00 was shown, then 00:01 became 23:01
        ("America/Toronto", "1919-03-31", "1919-03-31T04:30:00Z"),  # 23:30 became 00:30
        ("Atlantic/Azores", "2025-10-26", "2025-10-26T00:00:00Z"),  # 01:00 became 00:00: the first of two midnights
    ],
)
def test_a_local_day_begins_at_the_first_instant_of_its_date(name: str, day: str, start: str) -> None:
    """Where midnight was shown twice or never, the first instant that bears the date counts."""
    window = Dimension("day", "date", timezone=name).window(date.fromisoformat(day))
    assert window is not None
    assert window.start == instant(start)


CHANGES = [
    ("Europe/Berlin", "2025-03-29T23:00:00Z", "2025-03-30T22:00:00Z", 23),
    ("Europe/Berlin", "2025-10-25T22:00:00Z", "2025-10-26T23:00:00Z", 25),
    ("America/New_York", "2025-03-09T05:00:00Z", "2025-03-10T04:00:00Z", 23),
    ("America/New_York", "2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z", 25),
    ("Australia/Lord_Howe", "2025-10-04T13:30:00Z", "2025-10-05T13:00:00Z", 23),
    ("Australia/Lord_Howe", "2025-04-05T13:00:00Z", "2025-04-06T13:30:00Z", 24),
    ("Pacific/Apia", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", 24),
    ("America/Sao_Paulo", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z", 23),
    ("Asia/Kathmandu", "2025-01-01T18:15:00Z", "2025-01-02T18:15:00Z", 24),
]


@pytest.mark.parametrize(("name", "start", "end", "count"), CHANGES)
def test_hours_of_a_local_day(name: str, start: str, end: str, count: int) -> None:
    """The hours of a day of change cover it exactly: none lost, none twice, each begins at a full hour."""
    dimension = Dimension("hour", "datetime", timezone=name)
    hours = range_of(dimension, start, before=end)
    windows = windows_of(dimension, hours)
    assert len(hours) == count
    assert len({serialize(hour) for hour in hours}) == count
    assert windows[0].start == instant(start)
    assert windows[-1].end == instant(end)
    assert all(a.end == b.start for a, b in pairwise(windows))
    assert all(hour.astimezone(ZoneInfo(name)).minute == 0 for hour in hours)  # type: ignore[union-attr]  # datetimes


@pytest.mark.parametrize(
    ("day", "start"), [("2025-10-05", "2025-10-04T14:30:00Z"), ("2025-04-06", "2025-04-05T14:00:00Z")]
)
def test_hour_in_which_lord_howe_changes_by_half_an_hour_has_90_minutes(day: str, start: str) -> None:
    """The clock goes from 02:00 to 02:30, and from 02:00 back to 01:30; the hour from 01:00 takes the rest in."""
    dimension = Dimension("hour", "datetime", timezone="Australia/Lord_Howe")
    window = dimension.window(instant(start))
    assert window == Window(instant(start), instant(start) + 90 * MINUTE)
    with pytest.raises(InvalidPartition, match="full hour"):
        dimension.check(instant(start) + HOUR)


def test_day_that_apia_skipped_does_not_exist() -> None:
    """30 December 2011 is absent from ranges, refused as a key, and its neighbours' windows adjoin."""
    dimension = Dimension("day", "date", timezone="Pacific/Apia")
    days = range_of(dimension, "2011-12-28", through="2012-01-02")
    assert [serialize(day) for day in days] == ["2011-12-28", "2011-12-29", "2011-12-31", "2012-01-01", "2012-01-02"]
    assert date(2011, 12, 30) not in days
    assert list(days) == list(generate_range(date(2011, 12, 28), date(2012, 1, 2), "day", timezone="Pacific/Apia"))
    windows = windows_of(dimension, days)
    assert all(a.end == b.start for a, b in pairwise(windows))
    for refused in (
        lambda: dimension.parse("2011-12-30"),
        lambda: values_of(dimension, ["2011-12-30"]),
        lambda: explicit([dimension], ["2011-12-30"]),
        lambda: range_of(dimension, "2011-12-30", through="2012-01-02"),
        lambda: dimension.window(date(2011, 12, 30)),
    ):
        with pytest.raises((InvalidPartition, InvalidRange), match="2011-12-29 and 2011-12-31"):
            refused()


def test_steps_over_a_skipped_day_stay_in_step() -> None:
    """Every second day is counted by the calendar; one that the zone skipped is left out, the others stay."""
    made = generate_range(date(2011, 12, 26), date(2012, 1, 3), "2 days", timezone="Pacific/Apia")
    assert [serialize(day) for day in made] == ["2011-12-26", "2011-12-28", "2012-01-01", "2012-01-03"]
    assert [made.index(day) for day in made] == [0, 1, 2, 3]
    dates = generate_range(date(2011, 12, 26), date(2012, 1, 3), "7 days", timezone="Pacific/Apia")
    assert list(dates) == [date(2011, 12, 26), date(2012, 1, 2)]


def test_range_may_end_on_a_skipped_day() -> None:
    """Up to 30 December 2011 in Apia is up to the 29th."""
    made = generate_range(date(2011, 12, 28), date(2011, 12, 30), "day", timezone="Pacific/Apia")
    assert list(made) == [date(2011, 12, 28), date(2011, 12, 29)]


def test_exclusions_count_without_the_skipped_day() -> None:
    """Taking out days after the one that Apia skipped takes out these and no neighbour."""
    days = range_of(Dimension("day", "date", timezone="Pacific/Apia"), "2011-12-28", through="2012-01-05")
    left = days.without(
        ["2012-01-03"], [Span("2011-12-30", through="2012-01-01"), Span("2012-01-05", before="2012-02-01")]
    )
    assert [serialize(day) for day in left] == ["2011-12-28", "2011-12-29", "2012-01-02", "2012-01-04"]


def test_hour_over_which_a_day_began_at_half_past_is_two_partitions() -> None:
    """Toronto's clock went from 23:30 to 00:30 on 30 March 1919; each of both days has a half of that hour."""
    dimension = Dimension("hour", "datetime", timezone="America/Toronto")
    hours = range_of(dimension, "1919-03-31T03:00:00Z", before="1919-03-31T07:00:00Z")
    assert [serialize(hour) for hour in hours] == [
        "1919-03-31T03:00:00Z",
        "1919-03-31T04:00:00Z",
        "1919-03-31T04:30:00Z",
        "1919-03-31T05:00:00Z",
        "1919-03-31T06:00:00Z",
    ]
    days = range_of(dimension, "1919-03-30T05:00:00Z", before="1919-04-02T00:00:00Z", step="day")
    assert [serialize(day) for day in days] == ["1919-03-30T05:00:00Z", "1919-03-31T04:30:00Z", "1919-04-01T04:00:00Z"]


def test_repeated_minutes_of_the_old_date_belong_to_the_day_that_has_begun() -> None:
    """7 November 2010 began in St. John's at 02:30Z; at 02:35Z the clock showed the 6th again, in the same day."""
    dimension = Dimension("day", "datetime", unit="day", timezone="America/St_Johns")
    at = instant("2010-11-07T02:35:00Z")
    grid = dimension.grid(at, at)
    assert grid.value(grid.floor(at)) == instant("2010-11-07T02:30:00Z")
    assert list(range_of(dimension, "2010-11-07T02:30:00Z", through="2010-11-07T02:35:00Z")) == [
        instant("2010-11-07T02:30:00Z")
    ]


def test_local_days_as_datetimes_are_instants_of_local_midnight() -> None:
    """A datetime dimension of unit day has UTC keys 23, 24 and 25 hours apart."""
    dimension = Dimension("day", "datetime", unit="day", timezone="Europe/Berlin")
    days = range_of(dimension, "2025-03-29T23:00:00Z", before="2025-11-01T23:00:00Z")
    gaps = {b - a for a, b in pairwise(days)}  # type: ignore[operator]  # both are datetimes
    assert gaps == {23 * HOUR, 24 * HOUR, 25 * HOUR}
    assert [days.index(day) for day in days] == list(range(len(days)))
    with pytest.raises(InvalidPartition, match="2025-03-29T23:00:00Z and 2025-03-30T22:00:00Z"):
        dimension.parse("2025-03-30T00:00:00Z")


def test_day_steps_of_hour_partitions_begin_local_days() -> None:
    """A range of hours in steps of a day takes the hour at each local midnight."""
    dimension = Dimension("hour", "datetime", timezone="Europe/Berlin")
    made = range_of(dimension, "2025-10-24T22:00:00Z", through="2025-10-27T23:00:00Z", step="day")
    assert [serialize(hour) for hour in made] == [
        "2025-10-24T22:00:00Z",
        "2025-10-25T22:00:00Z",
        "2025-10-26T23:00:00Z",
        "2025-10-27T23:00:00Z",
    ]


def test_six_hour_steps_are_six_hours_of_time() -> None:
    """Steps of hours go by time that passes, not by the clock on the wall."""
    made = generate_range(
        instant("2025-10-25T22:00:00Z"), instant("2025-10-26T23:00:00Z"), "6 hours", timezone="Europe/Berlin"
    )
    assert all(b - a == 6 * HOUR for a, b in pairwise(made))  # type: ignore[operator]  # both are datetimes


@pytest.mark.parametrize(
    ("unit", "start", "end"),
    [
        ("week", "2025-10-19T22:00:00Z", "2025-10-26T23:00:00Z"),
        ("month", "2025-09-30T22:00:00Z", "2025-10-31T23:00:00Z"),
        ("quarter", "2025-09-30T22:00:00Z", "2025-12-31T23:00:00Z"),
        ("year", "2024-12-31T23:00:00Z", "2025-12-31T23:00:00Z"),
    ],
)
def test_windows_of_coarser_units_are_local(unit: str, start: str, end: str) -> None:
    """A week, month, quarter or year begins and ends at local midnight, for datetimes and for dates."""
    moments = Dimension("at", "datetime", unit=unit, timezone="Europe/Berlin")
    assert moments.window(instant(start)) == Window(instant(start), instant(end))
    local = instant(start).astimezone(ZoneInfo("Europe/Berlin")).date()
    dates = Dimension("on", "date", unit=unit, timezone="Europe/Berlin")
    assert dates.window(local) == Window(instant(start), instant(end))


def _walked_day_starts(name: str, begin: datetime, end: datetime) -> dict[date, datetime]:
    """Walk minute by minute and note the first instant at which each local date, or a later one, is shown."""
    clock, at, found = ZoneInfo(name), begin, dict[date, datetime]()
    latest = at.astimezone(clock).date()
    while at < end:
        at += MINUTE
        shown = at.astimezone(clock).date()
        if shown > latest:
            latest = shown
            found[shown] = at
    return found


WALKED = [
    ("America/Sao_Paulo", "2018-11-03"),
    ("America/Sao_Paulo", "2018-02-17"),
    ("America/St_Johns", "2010-11-06"),
    ("America/St_Johns", "2011-03-12"),
    ("America/Toronto", "1919-03-30"),
    ("Atlantic/Azores", "2025-10-25"),
    ("America/Havana", "2025-11-01"),
    ("America/Havana", "2025-03-08"),
    ("Asia/Beirut", "2025-03-29"),
    ("Asia/Gaza", "2011-08-01"),
    ("Pacific/Apia", "2011-12-29"),
    ("Pacific/Kwajalein", "1993-08-20"),
    ("Pacific/Kwajalein", "1969-09-30"),
    ("Antarctica/Troll", "2025-03-30"),
    ("Australia/Lord_Howe", "2025-04-05"),
    ("Africa/Monrovia", "1972-01-06"),
    ("Asia/Pyongyang", "2018-05-04"),
]


@pytest.mark.parametrize(("name", "day"), WALKED)
def test_day_starts_are_those_of_a_walk_by_the_minute(name: str, day: str) -> None:
    """Around each odd change, arithmetic finds the same starts as looking at the clock every minute."""
    around = date.fromisoformat(day)
    begin = datetime(around.year, around.month, around.day, tzinfo=UTC) - 2 * DAY
    walked = _walked_day_starts(name, begin, begin + 5 * DAY)
    assert walked
    for shown, at in walked.items():
        # A walk by the minute finds a start that is not at a full minute up to a minute late (Africa/Monrovia).
        assert timedelta() <= at - datetime_of(zone(name).day_start(shown.toordinal())) < MINUTE


ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "America/St_Johns",
    "Asia/Tehran",
    "Antarctica/Troll",
    "America/Caracas",
    "UTC",
]


@given(
    st.sampled_from(ZONES),
    st.integers(-2_000_000_000, 4_000_000_000),
    st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]),
)
def test_every_instant_lies_in_exactly_one_window(name: str, second: int, unit: str) -> None:
    """The partition that has begun at any instant has a window that holds it, and the next begins where it ends."""
    dimension = Dimension("at", "datetime", unit=unit, timezone=name)
    at = datetime_of(second)
    grid = dimension.grid(at, at)
    value = grid.value(grid.floor(at))
    window = dimension.window(value)
    assert window is not None
    assert window.start == value <= at < window.end
    following = dimension.window(window.end)
    assert following is not None
    assert following.start == window.end


@given(st.sampled_from(ZONES), st.integers(-2_000_000_000, 4_000_000_000), st.integers(1, 80))
def test_hours_between_two_hours_are_the_windows_between_them(name: str, second: int, count: int) -> None:
    """A range of hours is what following each window to the next gives, and positions are found again."""
    dimension = Dimension("at", "datetime", timezone=name)
    at = datetime_of(second)
    grid = dimension.grid(at, at)
    expected = [grid.value(grid.floor(at))]
    for _ in range(count - 1):
        window = dimension.window(expected[-1])
        assert window is not None
        expected.append(window.end)
    made = range_of(dimension, serialize(expected[0]), through=serialize(expected[-1]))
    assert list(made) == expected
    assert [made.index(hour) for hour in expected] == list(range(count))


def skipped(dimension: Dimension, day: date) -> bool:
    """Whether the zone skipped a day."""
    try:
        dimension.check(day)
    except InvalidPartition:
        return True
    return False


@given(st.sampled_from(ZONES), st.dates(date(1800, 1, 1), date(2200, 1, 1)), st.integers(1, 60))
@example("Pacific/Apia", date(2011, 12, 29), 1)
@example("Pacific/Apia", date(2011, 12, 31), 3)
def test_windows_of_days_adjoin_and_bear_their_date(name: str, first: date, count: int) -> None:
    """Days follow each other without gap or overlap, and each begins with its own date on the clock."""
    dimension = Dimension("on", "date", timezone=name)
    assume(not skipped(dimension, first))  # a range cannot start on a day that never was
    days = generate_range(first, first + timedelta(days=count), "day", timezone=name)
    windows = windows_of(dimension, days)
    assert all(a.end == b.start for a, b in pairwise(windows))
    clock = zone(name).clock
    assert all(window.start.astimezone(clock).date() == day for day, window in zip(days, windows, strict=True))
    assert all(
        (window.start - SECOND).astimezone(clock).date() < day  # type: ignore[operator]  # a range of dates
        for day, window in zip(days, windows, strict=True)
    )


@pytest.mark.parametrize("name", sorted({*ZONES, *(name for name, _ in WALKED)}))
def test_hours_around_every_listed_change_adjoin(name: str) -> None:
    """Around each change that the database lists for a zone, hours follow each other in strictly rising windows."""
    dimension = Dimension("at", "datetime", timezone=name)
    for at in zone(name).listed:
        grid = dimension.grid(datetime_of(at - 7200), datetime_of(at + 7200))
        first = grid.floor(datetime_of(at - 7200))
        starts = [grid.start(first + place) for place in range(6)]
        assert all(0 < b - a <= 2 * 3600 for a, b in pairwise(starts))
        assert [grid.floor(datetime_of(start)) for start in starts] == list(range(first, first + 6))
        assert starts[-1] > at


def test_windows_at_the_ends_of_time() -> None:
    """A key may lie on the last day of year 9999; only its window, which ends after it, is refused."""
    dimension = Dimension("on", "date")
    days = product([dimension], [values_of(dimension, ["0001-01-01", "9999-12-31"])])
    assert date(9999, 12, 31) in days
    assert days.window(date(1, 1, 1)) == Window(datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC))
    with pytest.raises(InvalidPartition, match="9999"):
        days.window(date(9999, 12, 31))
    for unit, last in [("week", date(9999, 12, 27)), ("month", date(9999, 12, 1)), ("year", date(9999, 1, 1))]:
        with pytest.raises(InvalidPartition, match="9999"):
            Dimension("on", "date", unit=unit).window(last)
    with pytest.raises(InvalidPartition, match="year 1"):
        Dimension("on", "date", timezone="Europe/Berlin").window(date(1, 1, 1))
    with pytest.raises(InvalidPartition, match="9999"):
        Dimension("at", "datetime").window(datetime(9999, 12, 31, 23, tzinfo=UTC))


@given(st.integers(-60_000_000_000, 250_000_000_000))
def test_instants_are_whole_seconds(second: int) -> None:
    """The two conversions are inverse over all of time."""
    assert seconds_of(datetime_of(second)) == second
