"""Grids: the points at which the partitions of a unit begin, numbered without gaps.

A grid maps a position (an int) to a value (a date or a UTC datetime) and back by arithmetic.

Days and coarser units: position n of the day grid is the date with ordinal n, of the week grid the n-th
Monday, of the month grid the n-th month, and so on. Weeks are ISO weeks and begin on Monday. For dates the
value is the first day of the period, for datetimes the instant at which that day begins in the zone. Days
that the zone skipped keep their position, so that steps stay in step (every 7th day stays the same
weekday); ranges leave them out.

Hours: an hour begins when the zone's clock shows a full hour, each time it does so, and when a local day
begins. So in autumn an hour shown twice is two partitions and in spring the missing one is none: 25 and 23
in Europe/Berlin. Where the clock is set by half an hour (Australia/Lord_Howe, at 02:00) the hour in which
this happens lasts 90 minutes, in spring and in autumn. Every window ends where the next one begins. In a
zone 5:30 from UTC, hours begin at :30 UTC.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import accumulate
from typing import Protocol

from flowstone.errors import InvalidPartition, InvalidRange, PartitionError
from flowstone.partition.keys import shown
from flowstone.partition.steps import Unit
from flowstone.partition.zones import DAY, HOUR, LAST_ORDINAL, Zone, datetime_of, seconds_of

Moment = date | datetime
_MONTHS: dict[Unit, int] = {"month": 1, "quarter": 3, "year": 12}
_POINTS: dict[Unit, str] = {
    "hour": "a full hour",
    "day": "the start of a day",
    "week": "a Monday",
    "month": "the first day of a month",
    "quarter": "the first day of a quarter",
    "year": "the first day of a year",
}


class Grid(Protocol):
    """Where the partitions of one unit begin in one zone."""

    @property
    def unit(self) -> Unit:
        """The unit whose points these are."""
        ...

    @property
    def zone(self) -> Zone:
        """The zone whose clock counts."""
        ...

    def value(self, position: int) -> Moment:
        """Return the value at a position; InvalidPartition outside the years 1 to 9999."""
        ...

    def floor(self, value: Moment) -> int:
        """Return the greatest position whose value is not after this one."""
        ...

    def start(self, position: int) -> int:
        """Return the instant at which the partition at a position begins, which is where the one before ends."""
        ...

    def skipped(self, first: int, last: int) -> Sequence[int]:
        """Return the positions from first to last that do not exist in the zone."""
        ...


@dataclass(frozen=True)
class Periods:
    """Days, weeks, months, quarters or years of the calendar, numbered."""

    unit: Unit
    zone: Zone

    def ordinal(self, position: int) -> int:
        """Return the first day of a period; one after year 9999 only has to be later than any date."""
        if self.unit == "day":
            return position
        if self.unit == "week":
            return position * 7 + 1
        year, month = divmod(position * _MONTHS[self.unit], 12)
        if year > 9999:
            return LAST_ORDINAL + 1
        return date(year, month + 1, 1).toordinal() if year > 0 else 0

    def period(self, ordinal: int) -> int:
        """Return the period that holds a day."""
        if self.unit == "day":
            return ordinal
        if self.unit == "week":
            return (ordinal - 1) // 7
        day = date.fromordinal(min(max(ordinal, 1), LAST_ORDINAL))
        return (day.year * 12 + day.month - 1) // _MONTHS[self.unit]

    def start(self, position: int) -> int:
        """Return the instant at which a period begins."""
        return self.zone.day_start(self.ordinal(position))

    def skipped(self, first: int, last: int) -> Sequence[int]:
        """Return the days from first to last that the zone skipped; a coarser period always has days left."""
        return self.zone.skipped_between(first, last) if self.unit == "day" else ()


class DateGrid(Periods):
    """Periods as the date of their first day."""

    def value(self, position: int) -> date:
        """Return the first day of a period."""
        ordinal = self.ordinal(position)
        if not 1 <= ordinal <= LAST_ORDINAL:
            raise InvalidPartition("A date outside the years 1 to 9999 was needed; choose one inside.")
        return date.fromordinal(ordinal)

    def floor(self, value: Moment) -> int:
        """Return the period that holds a date."""
        return self.period(value.toordinal())


class InstantGrid(Periods):
    """Periods as the UTC instant at which they begin in the zone."""

    def value(self, position: int) -> datetime:
        """Return the instant at which a period begins."""
        return datetime_of(self.start(position))

    def floor(self, value: Moment) -> int:
        """Return the last period that has begun at an instant."""
        instant = seconds_of(_datetime(value))
        position = self.period(self.zone.local_day(instant))
        # A clock set back over midnight shows the old date again after the new day has begun.
        while self.start(position + 1) <= instant:
            position += 1
        while self.start(position) > instant:
            position -= 1
        return position


class HourGrid:
    """Hours of a zone's clock in a span of time; positions count from a point shortly before the span."""

    unit: Unit = "hour"

    def __init__(self, zone: Zone, first: int, last: int) -> None:
        self.zone = zone
        self._runs = _runs(zone, first - DAY, last + DAY)
        self._before = list(accumulate([count for _, count in self._runs], initial=0))
        self._firsts = [start for start, _ in self._runs]

    def start(self, position: int) -> int:
        """Return the instant at which the hour at a position begins."""
        run = bisect_right(self._before, position, 1, len(self._runs)) - 1
        return self._firsts[run] + (position - self._before[run]) * HOUR

    def value(self, position: int) -> datetime:
        """Return that instant as a datetime."""
        return datetime_of(self.start(position))

    def floor(self, value: Moment) -> int:
        """Return the last hour that has begun at an instant."""
        instant = seconds_of(_datetime(value))
        run = max(bisect_right(self._firsts, instant) - 1, 0)
        steps = min((instant - self._firsts[run]) // HOUR, self._runs[run][1] - 1)
        return self._before[run] + steps

    def skipped(self, first: int, last: int) -> Sequence[int]:
        """Return (): an hour that the clock jumped over has no instant and so no position."""
        return ()


def grid_of(unit: Unit, zone: Zone, kind: type[Moment], first: Moment, last: Moment) -> Grid:
    """Return the grid of a unit that is good from first to last, for values of a type.

    Raises:
        InvalidRange: hours of dates.
    """
    if kind is date:
        if unit == "hour":
            raise InvalidRange("A date has no hours; use a datetime, or a step of a day or more.")
        return DateGrid(unit, zone)
    if unit == "hour":
        return HourGrid(zone, seconds_of(_datetime(first)), seconds_of(_datetime(last)))
    return InstantGrid(unit, zone)


def aligned(grid: Grid, value: Moment, error: type[PartitionError]) -> int:
    """Return the position of a value that must lie on the grid and exist in the zone.

    Raises:
        PartitionError: it does not; the message names the nearest values that do.
    """
    position = grid.floor(value)
    if value_or_none(grid, position) != value:
        raise error(
            f"{shown(value)} is not {_POINTS[grid.unit]}{_in_zone(grid, value)};"
            f" the nearest are {_nearest(grid, position)}.{_zone_hint(grid, value)}"
        )
    if grid.skipped(position, position):
        raise error(
            f"{shown(value)} does not exist in {grid.zone.name}, whose clock jumped over that day;"
            f" the nearest are {_nearest(grid, position - 1, position + 1)}."
        )
    return position


def _runs(zone: Zone, first: int, last: int) -> list[tuple[int, int]]:
    """Return runs of hours, as their first instant and their number, between two instants."""
    runs, begin, offset = list[tuple[int, int]](), first, zone.offset(first)
    for change in zone.hour_changes(first + 1, last):
        runs.append(_run(begin, change.at, offset))
        if zone.begins_day_off_hour(change):
            runs.append((change.at, 1))
        begin, offset = change.at, change.after
    runs.append(_run(begin, last + 1, offset))
    return [run for run in runs if run[1] > 0]


def _run(begin: int, end: int, offset: int) -> tuple[int, int]:
    first = begin + -(begin + offset) % HOUR
    return first, -((first - end) // HOUR)


def _datetime(value: Moment) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidRange(f"{shown(value)} is a date where a datetime was expected.")
    return value


def value_or_none(grid: Grid, position: int) -> Moment | None:
    """Return the value at a position, None outside the years 1 to 9999."""
    try:
        return grid.value(position)
    except InvalidPartition:
        return None


def _nearest(grid: Grid, *positions: int) -> str:
    around = positions if len(positions) > 1 else (positions[0], positions[0] + 1)
    values = [value_or_none(grid, position) for position in around]
    return " and ".join(shown(value) for value in values if value is not None)


def _in_zone(grid: Grid, value: Moment) -> str:
    return f" in {grid.zone.name}" if isinstance(value, datetime) else ""


def _zone_hint(grid: Grid, value: Moment) -> str:
    in_utc = grid.zone.name == "UTC" and isinstance(value, datetime)
    return " A local day or hour needs its zone: timezone='Europe/Berlin'." if in_utc else ""
