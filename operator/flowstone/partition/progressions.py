"""Progressions: every n-th point of a grid, as a lazy sequence that answers by arithmetic.

A point is counted "raw" from the first one; those that the zone skipped are holes, and what a reader sees
is the raw sequence without its holes. There are a handful of holes in all of history, so bisecting them
costs nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any

from flowstone.errors import InvalidRange
from flowstone.partition.grids import DateGrid, Grid, Moment, aligned, grid_of, value_or_none
from flowstone.partition.keys import instant_text, shown
from flowstone.partition.steps import Step
from flowstone.partition.zones import Zone


@dataclass(frozen=True, eq=False)
class Progression:
    """Points of a grid from a first one, every stride-th, ascending."""

    grid: Grid
    first: int
    stride: int
    raw_count: int

    @cached_property
    def holes(self) -> list[int]:
        """Raw indexes of the points that do not exist in the zone, ascending."""
        skipped = self.grid.skipped(self.first, self.first + (self.raw_count - 1) * self.stride)
        places = [divmod(position - self.first, self.stride) for position in skipped]
        return [raw for raw, rest in places if rest == 0]

    @cached_property
    def _ranks(self) -> list[int]:
        return [raw - number for number, raw in enumerate(self.holes)]

    @cached_property
    def kind(self) -> type[Moment]:
        """Whether the values are dates or datetimes."""
        return date if isinstance(self.grid, DateGrid) else datetime

    def __len__(self) -> int:
        return self.raw_count - len(self.holes)

    def __getitem__(self, index: int) -> Moment:
        """Return the value at an index, which must lie in 0..len-1."""
        return self.grid.value(self._position(index))

    def below(self, value: Moment) -> int:
        """Return how many values are smaller than this one."""
        position = self.grid.floor(value)
        if value_or_none(self.grid, position) != value:
            position += 1
        raw = min(max(-((self.first - position) // self.stride), 0), self.raw_count)
        return raw - bisect_left(self.holes, raw)

    def find(self, value: Any) -> int | None:
        """Return the index of a value, or None."""
        if type(value) is not self.kind:
            return None
        position = self.grid.floor(value)
        raw, rest = divmod(position - self.first, self.stride)
        if rest or not 0 <= raw < self.raw_count or self.grid.value(position) != value:
            return None
        before = bisect_left(self.holes, raw)
        return None if raw in self.holes[before : before + 1] else raw - before

    def values(self, low: int, high: int) -> Iterator[Moment]:
        """Yield the values at the indexes low..high-1."""
        grid = self.grid
        for positions in self._stretches(low, high):
            if grid.unit == "day" and isinstance(grid, DateGrid):
                yield from map(date.fromordinal, positions)
            else:
                yield from map(grid.value, positions)

    def texts(self, low: int, high: int) -> Iterator[str]:
        """Yield the canonical texts of the values at the indexes low..high-1."""
        if self.kind is date:
            return map(date.isoformat, self.values(low, high))
        return map(instant_text, self.values(low, high))  # type: ignore[arg-type]  # kind says datetime

    def cut(self, low: int, high: int) -> Progression:
        """Return the values at the indexes low..high-1 as a progression; low < high."""
        first, last = self._position(low), self._position(high - 1)
        return Progression(self.grid, first, self.stride, (last - first) // self.stride + 1)

    def _position(self, index: int) -> int:
        raw = index + bisect_right(self._ranks, index) if self.holes else index
        return self.first + raw * self.stride

    def _stretches(self, low: int, high: int) -> Iterator[range]:
        """Yield the positions of the indexes low..high-1, split at the holes."""
        if low >= high:
            return
        begin, end = self._position(low), self._position(high - 1)
        for hole in self.holes:
            position = self.first + hole * self.stride
            if begin < position < end:
                yield range(begin, position, self.stride)
                begin = position + self.stride
        yield range(begin, end + 1, self.stride)


def progression(start: Moment, stop: Moment, step: Step, zone: Zone, *, included: bool = True) -> Progression:
    """Return the points from start to stop, stop included if it is one and `included`.

    Args:
        start: a date, or a datetime in UTC, on the grid of the step's unit; every n-th point is counted from here.
        stop: of the same type; need not lie on the grid.

    Raises:
        InvalidRange: start is off the grid or skipped by the zone, or the range is reversed or empty.
    """
    if stop < start:
        raise InvalidRange(f"The range from {shown(start)} to {shown(stop)} is reversed; write the earlier one first.")
    if stop == start and not included:
        raise InvalidRange(f"The range from {shown(start)} to before itself is empty; end it later.")
    grid = grid_of(step.unit, zone, type(start), start, stop)
    first = aligned(grid, start, InvalidRange)
    last = grid.floor(stop)
    if not included and grid.value(last) == stop:
        last -= 1
    return Progression(grid, first, step.count, (last - first) // step.count + 1)
