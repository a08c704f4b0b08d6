"""Time zones: when a local day begins, which days a zone skipped, and where its clock was changed.

Instants are whole seconds since 1970-01-01T00:00:00Z, as int: sums of them never overflow, and only what
leaves this package is turned into a datetime. Days are proleptic Gregorian ordinals (`date.toordinal`).

A local day begins at the first instant whose local date is that day. So:

- every instant belongs to exactly one day: a day ends where the next day that exists begins;
- where the clock jumps over midnight (America/Sao_Paulo), the day begins at the jump, local 01:00;
- where it is set back over midnight (America/St_Johns, 00:01 to 23:01), the new day has begun, and the
  repeated minutes of the old date belong to it;
- a day that the clock jumped over in whole (Pacific/Apia, 2011-12-30) does not exist.

The rules come from the pinned `tzdata` package and never from the machine, or two replicas could plan
differently.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.resources import files
from zoneinfo import ZoneInfo

from flowstone.errors import InvalidPartition, UnknownZone
from flowstone.partition.keys import shown

DAY = 86_400
HOUR = 3_600
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
LAST_ORDINAL = date.max.toordinal()
MIN_INSTANT = (1 - EPOCH_ORDINAL) * DAY
MAX_INSTANT = (LAST_ORDINAL + 1 - EPOCH_ORDINAL) * DAY - 1
_SECOND = timedelta(seconds=1)
_PROBE = 14 * DAY  # rules that recur for ever change the clock twice a year, months apart


def seconds_of(instant: datetime) -> int:
    """Return a UTC datetime as seconds since 1970."""
    return (instant - EPOCH) // _SECOND


def datetime_of(seconds: int) -> datetime:
    """Return seconds since 1970 as a UTC datetime.

    Raises:
        InvalidPartition: the instant lies outside the years 1 to 9999.
    """
    if not MIN_INSTANT <= seconds <= MAX_INSTANT:
        side = "before year 1" if seconds < 0 else "after year 9999"
        raise InvalidPartition(f"An instant {side} (in UTC) was needed; choose a partition inside these years.")
    return EPOCH + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Change:
    """A moment at which a zone's clock was set: from `before` to `after` seconds east of UTC."""

    at: int
    before: int
    after: int


@dataclass(frozen=True)
class Zone:
    """A time zone of the IANA database, with the arithmetic that partitions need."""

    name: str
    clock: tzinfo = field(repr=False, compare=False)
    listed: tuple[int, ...] = field(repr=False, compare=False)
    """Changes that the database lists one by one, ascending."""
    recurs: bool = field(repr=False, compare=False)
    """Whether the clock is changed every year after the last listed change."""

    def offset(self, instant: int) -> int:
        """Return the seconds east of UTC that the zone's clock shows at an instant."""
        inside = min(max(instant, MIN_INSTANT + 2 * DAY), MAX_INSTANT - 2 * DAY)
        offset = (EPOCH + timedelta(seconds=inside)).astimezone(self.clock).utcoffset()
        return 0 if offset is None else offset // _SECOND

    def local_day(self, instant: int) -> int:
        """Return the ordinal of the date that the zone's clock shows at an instant."""
        return (instant + self.offset(instant)) // DAY + EPOCH_ORDINAL

    def day_start(self, ordinal: int) -> int:
        """Return the first instant whose local date is this day or, where it was skipped, a later one."""
        midnight = (ordinal - EPOCH_ORDINAL) * DAY
        if self.fixed is not None:
            return midnight - self.fixed
        first, second = self._midnight_offsets(ordinal)
        # The two differ where midnight was shown twice or never; everywhere else one look is enough.
        return midnight - first if first == second else self._first_showing(midnight)

    @cached_property
    def fixed(self) -> int | None:
        """The offset of a clock that was never set, such as UTC's; None if it was."""
        return self.offset(0) if not self.listed and not self.recurs else None

    @cached_property
    def skipped_days(self) -> tuple[int, ...]:
        """Ordinals of the days that the clock jumped over in whole, ascending."""
        return tuple(day for at in self.listed for day in _days_jumped(self.change(at)))

    def skipped_between(self, first: int, last: int) -> tuple[int, ...]:
        """Return the skipped days from first to last, both included."""
        days = self.skipped_days
        return days[bisect_left(days, first) : bisect_right(days, last)]

    def change(self, at: int) -> Change:
        """Return what happened to the clock at an instant."""
        return Change(at, self.offset(at - 1), self.offset(at))

    def changes(self, first: int, last: int) -> Iterator[Change]:
        """Yield the changes at instants from first to last, both included, ascending."""
        for at in self.listed[bisect_left(self.listed, first) : bisect_right(self.listed, last)]:
            yield self.change(at)
        if self.recurs:
            yield from self._recurring(max(first, self.listed[-1] + 1 if self.listed else first), last)

    def hour_changes(self, first: int, last: int) -> Iterator[Change]:
        """Yield the changes after which full hours of the clock are not where they would have been."""
        if self.fixed is not None:
            return
        if not self._moves_hours_for_ever:
            last = min(last, self.listed[-1]) if self.listed else first - 1
        for change in self.changes(first, last):
            if self._moves_hours(change):
                yield change

    @cached_property
    def _moves_hours_for_ever(self) -> bool:
        start = self.listed[-1] + 1 if self.listed else 0
        return any(self._moves_hours(change) for change in self._recurring(start, start + 800 * DAY))

    def _moves_hours(self, change: Change) -> bool:
        return (change.after - change.before) % HOUR != 0 or self.begins_day_off_hour(change)

    def begins_day_off_hour(self, change: Change) -> bool:
        """Return whether a day begins at this change although the clock then shows no full hour."""
        off_hour = (change.at + change.after) % HOUR != 0
        return off_hour and self.day_start(self.local_day(change.at)) == change.at

    def _recurring(self, first: int, last: int) -> Iterator[Change]:
        if not self.recurs:
            return
        low, offset = first - 1, self.offset(first - 1)
        while low < last:
            high = min(low + _PROBE, last)
            after = self.offset(high)
            if after != offset:
                yield Change(self._moment(low, high), offset, after)
            low, offset = high, after

    def _moment(self, low: int, high: int) -> int:
        """Return the first instant after low with the offset of high, where one change lies between."""
        target = self.offset(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.offset(middle) == target else (middle, high)
        return high

    def _midnight_offsets(self, ordinal: int) -> tuple[int, int]:
        wall = datetime.fromordinal(min(max(ordinal, 1), LAST_ORDINAL)).replace(tzinfo=self.clock)
        first, second = wall.utcoffset(), wall.replace(fold=1).utcoffset()
        return (first or timedelta()) // _SECOND, (second or timedelta()) // _SECOND

    def _first_showing(self, wall: int) -> int:
        """Return the first instant at which the clock shows this wall time or a later one."""
        begin = wall - 2 * DAY
        offset = self.offset(begin)
        for change in self.changes(begin + 1, wall + 2 * DAY):
            if wall - offset < change.at:
                break
            begin, offset = change.at, change.after
        return max(begin, wall - offset)


@cache  # a memo of the database, which cannot change while the process runs
def zone(name: str) -> Zone:
    """Return the zone of an IANA name such as `Europe/Berlin`.

    Raises:
        UnknownZone: no such zone; the message names those that look alike.
    """
    if not isinstance(name, str) or name not in _names():
        raise UnknownZone(_unknown(name))
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        data = file.read()
        file.seek(0)
        clock = ZoneInfo.from_file(file, key=name)
    times, recurs = _transitions(data)
    plain = Zone(name, clock, (), False)
    return Zone(name, clock, tuple(at for at in times if plain.offset(at - 1) != plain.offset(at)), recurs)


@cache
def _names() -> frozenset[str]:
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


def _unknown(name: object) -> str:
    if not isinstance(name, str):
        return "A time zone is an IANA name, a str such as 'Europe/Berlin'."
    alike = get_close_matches(name[:64].title(), _names(), n=3)
    hint = f" such as {' or '.join(alike)}" if alike else " such as Europe/Berlin or UTC"
    return f"{shown(name)} is no time zone of the IANA database; write a name{hint}."


def _transitions(data: bytes) -> tuple[tuple[int, ...], bool]:
    """Return the transition times listed in a TZif file (RFC 9636), and whether its footer goes on yearly."""
    narrow = _counts(data, 0)
    start = 44 + _block_size(narrow, 4)
    wide = _counts(data, start)
    times = struct.unpack_from(f">{wide[3]}q", data, start + 44)
    footer = data[start + 44 + _block_size(wide, 8) :]
    return tuple(at for at in times if at >= MIN_INSTANT), b"," in footer


def _counts(data: bytes, start: int) -> tuple[int, ...]:
    """Return isutcnt, isstdcnt, leapcnt, timecnt, typecnt and charcnt of a header."""
    return struct.unpack_from(">6l", data, start + 20)


def _block_size(counts: tuple[int, ...], width: int) -> int:
    isut, isstd, leap, time, types, chars = counts
    return time * (width + 1) + types * 6 + chars + leap * (width + 4) + isstd + isut


def _days_jumped(change: Change) -> range:
    first = -(-(change.at + change.before) // DAY)
    end = (change.at + change.after) // DAY
    return range(first + EPOCH_ORDINAL, max(first, end) + EPOCH_ORDINAL)
