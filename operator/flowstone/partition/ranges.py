"""Ranges: `generate_range`, and the lazy sequence it returns.

Both ends are included, as far as the last point that is not after `stop`. `every n` is counted from
`start`, in units of the calendar: two weeks after a Monday is a Monday, and six hours are six full hours of
time, whatever the clock does meanwhile. Nothing is built: `len`, index, slice and `in` are arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, overload

from flowstone.errors import InvalidPartition, InvalidRange
from flowstone.partition.keys import Key, KeyElement, normalized, shown
from flowstone.partition.progressions import Progression, progression
from flowstone.partition.steps import Step, parse_step
from flowstone.partition.zones import zone


class Range(Sequence[Key]):
    """A lazy, immutable sequence of keys of which one element is stepped; equal to any list of the same keys."""

    __slots__ = ("_before", "_behind", "_picked", "_points")

    def __init__(
        self,
        points: Progression,
        picked: range,
        before: tuple[KeyElement, ...] | None = None,
        behind: tuple[KeyElement, ...] = (),
    ) -> None:
        self._points = points
        self._picked = picked
        self._before = before
        self._behind = behind

    def __len__(self) -> int:
        return len(self._picked)

    @overload
    def __getitem__(self, index: int) -> Key: ...
    @overload
    def __getitem__(self, index: slice) -> Range: ...
    def __getitem__(self, index: int | slice) -> Key | Range:
        if isinstance(index, slice):
            return Range(self._points, self._picked[index], self._before, self._behind)
        return self._key(self._points[self._picked[index]])

    def __iter__(self) -> Iterator[Key]:
        picked = self._picked
        if picked.step == 1:
            return map(self._key, self._points.values(picked.start, picked.stop))
        return (self._key(self._points[index]) for index in picked)

    def __reversed__(self) -> Iterator[Key]:
        return iter(self[::-1])

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the index of a key.

        Raises:
            InvalidPartition: the key is not in the range (a ValueError, as for any sequence).
        """
        found = self._find(value)
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise InvalidPartition(f"{shown(value)} is not in {self!r}; ask with `in` first.")
        return found

    def count(self, value: Any) -> int:
        """Return 1 if the key is in the range, else 0."""
        return int(value in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Range | list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash((len(self), self[0], self[-1])) if self else hash(())

    def __repr__(self) -> str:
        if not self:
            return "Range(empty)"
        return f"Range({shown(self[0])}..{shown(self[-1])}, {len(self)} keys)"

    def _key(self, value: KeyElement) -> Key:
        return value if self._before is None else (*self._before, value, *self._behind)

    def _find(self, key: Any) -> int | None:
        value = self._stepped(key)
        if value is None:
            return None
        index = self._points.find(value)
        return self._picked.index(index) if index is not None and index in self._picked else None

    def _stepped(self, key: Any) -> KeyElement | None:
        """Return the element of a key that is stepped here, None if the rest of the key is not this range's."""
        try:
            if self._before is None:
                return normalized(key)
            place = len(self._before)
            if type(key) is not tuple or len(key) != place + 1 + len(self._behind):
                return None
            rest = tuple(map(normalized, key[:place] + key[place + 1 :]))
            return normalized(key[place]) if rest == self._before + self._behind else None
        except InvalidPartition:
            return None


def generate_range(start: Key, stop: Key, step: str | Step, *, timezone: str = "UTC") -> Range:
    """Return the keys from start to stop, both included, as a lazy sequence.

    Args:
        start: a date, a datetime, or a tuple; must lie on the grid of the step (a Monday, the 1st, a full hour).
        stop: of the same type, equal to start in all elements of a tuple but one; need not lie on the grid.
        step: `hour`, `day`, `week`, `month`, `quarter`, `year`, or several such as `2 weeks`.
        timezone: IANA name of the zone in which hours and days begin; dates that it skipped are left out.

    Raises:
        InvalidRange: reversed, off the grid, unknown step, or start and stop are not of one shape.
        InvalidPartition: start or stop is no key.
        UnknownZone: the zone is not in the IANA database.
    """
    if type(start) is not tuple and type(stop) is not tuple:
        points = _points(normalized(start), normalized(stop), step, timezone)
        return Range(points, range(len(points)))
    if type(start) is not tuple or type(stop) is not tuple or len(start) != len(stop):
        raise InvalidRange("Start and stop have different numbers of elements; write two keys of one type.")
    first, last = tuple(map(normalized, start)), tuple(map(normalized, stop))
    place = _stepped_place(first, last)
    points = _points(first[place], last[place], step, timezone)
    return Range(points, range(len(points)), first[:place], first[place + 1 :])


def _points(start: KeyElement, stop: KeyElement, step: str | Step, timezone: str) -> Progression:
    if type(start) is not type(stop):
        raise InvalidRange(f"{shown(start)} and {shown(stop)} are of different types; write two of one type.")
    if not isinstance(start, date) or not isinstance(stop, date):
        raise InvalidRange(f"Strings such as {shown(start)} have no steps; list the values instead.")
    return progression(start, stop, parse_step(step), zone(timezone))


def _stepped_place(start: tuple[KeyElement, ...], stop: tuple[KeyElement, ...]) -> int:
    """Return which element of a tuple is stepped: the one that differs, or the last date or datetime."""
    places = [place for place, (a, b) in enumerate(zip(start, stop, strict=True)) if a != b]
    if len(places) > 1:
        raise InvalidRange(
            f"{shown(start)} and {shown(stop)} differ in {len(places)} elements; a range steps one,"
            " for several use a product of dimensions."
        )
    places = places or [place for place, value in enumerate(start) if isinstance(value, date)]
    if not places:
        raise InvalidRange(f"{shown(start)} holds no date or datetime to step; list the keys instead.")
    return places[-1]
