"""The values of one dimension: a sorted sequence without duplicates, made of pieces.

A piece is a progression (arithmetic, nothing built) or a list that was written down. Pieces do not overlap
and follow each other in order, so that the n-th value and the place of a value are one bisection among
pieces and one inside. Taking values out cuts pieces and builds nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, cast, overload

from flowstone.errors import InvalidPartition, InvalidRange, InvalidSet
from flowstone.partition.dimensions import Dimension
from flowstone.partition.grids import Moment
from flowstone.partition.keys import KeyElement, deserialize, element_text, normalized, shown
from flowstone.partition.progressions import Progression, progression
from flowstone.partition.steps import FINER, Step, parse_step, parse_unit

Interval = tuple[int, int]
"""Positions from the first to before the second."""


@dataclass(frozen=True)
class Span:
    """A stretch of time to leave out, as in `exclude.ranges`; the ends need not lie on a grid."""

    start: str
    """The first moment, included, as canonical text."""
    through: str | None = None
    """The last moment, included; instead of `before`."""
    before: str | None = None
    """The first moment that is no longer meant; instead of `through`."""


@dataclass(frozen=True, eq=False)
class Listed:
    """Values that were written down, ascending, without duplicates."""

    items: tuple[KeyElement, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> KeyElement:
        return self.items[index]

    def below(self, value: KeyElement) -> int:
        """Return how many values are smaller than this one."""
        return bisect_left(self.items, value)

    def find(self, value: Any) -> int | None:
        """Return the index of a value, or None."""
        index = self.below(value)
        return index if index < len(self.items) and self.items[index] == value else None

    def values(self, low: int, high: int) -> Iterator[KeyElement]:
        """Yield the values at the indexes low..high-1."""
        return iter(self.items[low:high])

    def texts(self, low: int, high: int) -> Iterator[str]:
        """Yield the canonical texts of the values at the indexes low..high-1."""
        return map(element_text, self.items[low:high])

    def cut(self, low: int, high: int) -> Listed:
        """Return the values at the indexes low..high-1."""
        return Listed(self.items[low:high])


Piece = Listed | Progression


class Values(Sequence[KeyElement]):
    """The values of one dimension, ascending; lazy, immutable, never empty unless a slice is."""

    def __init__(self, dimension: Dimension, pieces: Iterable[Piece]) -> None:
        self.dimension = dimension
        self.pieces = tuple(pieces)
        self._before = list(accumulate(map(len, self.pieces), initial=0))

    def __len__(self) -> int:
        return self._before[-1]

    @overload
    def __getitem__(self, index: int) -> KeyElement: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[KeyElement]: ...
    def __getitem__(self, index: int | slice) -> KeyElement | Sequence[KeyElement]:
        """Return a value, or a slice: lazy if its step is 1, else a tuple."""
        if isinstance(index, slice):
            picked = range(len(self))[index]
            if picked.step == 1:
                return self.keep([(picked.start, max(picked.start, picked.stop))])
            return tuple(self[position] for position in picked)
        position = range(len(self))[index]
        piece = bisect_right(self._before, position) - 1
        return self.pieces[piece][position - self._before[piece]]

    def __iter__(self) -> Iterator[KeyElement]:
        return self.between(0, len(self))

    def __contains__(self, value: object) -> bool:
        return self.find(value) is not None

    def __repr__(self) -> str:
        ends = f"{shown(self[0])}..{shown(self[-1])}" if self else "empty"
        return f"Values({self.dimension.name}: {ends}, {len(self)})"

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the position of a value; InvalidPartition, a ValueError, if it is not there."""
        found = self.find(value)
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise InvalidPartition(f"{shown(value)} is not among the values of {self.dimension.name}.")
        return found

    def find(self, value: Any) -> int | None:
        """Return the position of a value, or None, whatever it is asked for."""
        kind = self.dimension.kind
        if type(value) is not kind:
            return None
        try:
            element = normalized(value)
        except InvalidPartition:
            return None
        piece = bisect_right(self._lows, element) - 1
        if piece < 0:
            return None
        found = self.pieces[piece].find(element)
        return None if found is None else self._before[piece] + found

    def below(self, value: KeyElement) -> int:
        """Return how many values are smaller than one of the dimension's type, which need not be among them."""
        piece = bisect_right(self._lows, value) - 1
        return 0 if piece < 0 else self._before[piece] + self.pieces[piece].below(value)  # type: ignore[arg-type]

    def text(self, position: int) -> str:
        """Return the canonical text of the value at a position."""
        return element_text(self[position])

    def between(self, low: int, high: int) -> Iterator[KeyElement]:
        """Yield the values at the positions low..high-1."""
        return chain.from_iterable(piece.values(a, b) for piece, a, b in self._overlapping(low, high))

    def texts(self, low: int, high: int) -> Iterator[str]:
        """Yield the canonical texts of the values at the positions low..high-1."""
        return chain.from_iterable(piece.texts(a, b) for piece, a, b in self._overlapping(low, high))

    def widest(self, low: int, high: int) -> int:
        """Return the most bytes that a text at the positions low..high-1 has."""
        if self.dimension.type == "string":
            return max(len(text.encode()) for text in self.texts(low, high))
        return 10 if self.dimension.type == "date" else 20

    def keep(self, intervals: Iterable[Interval]) -> Values:
        """Return the values at the positions of ascending, disjoint intervals."""
        parts = [part for low, high in intervals for part in self._overlapping(low, high)]
        whole = ((piece, a, b, b - a == len(piece)) for piece, a, b in parts)
        return Values(self.dimension, (piece if all_ else piece.cut(a, b) for piece, a, b, all_ in whole))

    def without(self, values: Iterable[str] = (), ranges: Iterable[Span] = ()) -> Values:
        """Return what is left after some values and stretches of time are taken out.

        Args:
            values: canonical texts of the dimension; one that is not here changes nothing.
            ranges: stretches of time; not for strings.

        Raises:
            InvalidPartition, InvalidRange: a text is none of the dimension, or a stretch is reversed or empty.
            InvalidSet: nothing is left.
        """
        found = [self.find(self.dimension.parse(text)) for text in values]
        out = [(place, place + 1) for place in found if place is not None]
        out += [self._covered(span) for span in ranges]
        left = self.keep(complement(out, len(self)))
        if not left:
            raise InvalidSet(f"The exclusions leave no value of {self.dimension.name}; exclude fewer.")
        return left

    @cached_property
    def _lows(self) -> list[KeyElement]:
        return [piece[0] for piece in self.pieces]

    def _overlapping(self, low: int, high: int) -> Iterator[tuple[Piece, int, int]]:
        """Yield the pieces that hold the positions low..high-1, with the indexes inside each."""
        place = bisect_right(self._before, low) - 1
        while low < high:
            base, piece = self._before[place], self.pieces[place]
            end = min(high, base + len(piece))
            yield piece, low - base, end - base
            low, place = end, place + 1

    def _covered(self, span: Span) -> Interval:
        start, end, included = _ends(self.dimension, span.start, span.through, span.before)
        if end < start or (end == start and not included):
            raise InvalidRange(f"The excluded range from {shown(start)} to {shown(end)} is reversed or empty.")
        high = self.below(end)
        return self.below(start), high + 1 if included and self.find(end) is not None else high


def values_of(dimension: Dimension, values: Sequence[str]) -> Values:
    """Return listed values, given as canonical texts in any order; repeated ones count once.

    Raises:
        InvalidSet: the list is empty.
        InvalidPartition: a text is none of the dimension.
    """
    if isinstance(values, str):
        raise InvalidSet(f"The values of {dimension.name} are a list; write [{shown(values)}].")
    return listed(dimension, map(dimension.parse, values))


def listed(dimension: Dimension, values: Iterable[KeyElement]) -> Values:
    """Return values of a dimension that are already checked, in any order; repeated ones count once."""
    items = tuple(sorted(set(values)))
    if not items:
        raise InvalidSet(f"The dimension {dimension.name} has no values; list at least one.")
    return Values(dimension, [Listed(items)])


def range_of(
    dimension: Dimension,
    start: str,
    *,
    through: str | None = None,
    before: str | None = None,
    step: str | Step | None = None,
) -> Values:
    """Return the values from start through a last moment, or before a moment.

    Args:
        start: canonical text of a value, on the grid of the step.
        through: the last moment, included if it is a value; either this or `before`.
        before: the first moment left out.
        step: such as `day` or `2 weeks`, counted from start; unset means the dimension's unit.

    Raises:
        InvalidPartition, InvalidRange: a text is none of the dimension, start is off the grid, or the range is
            reversed, empty or of a step that does not fit the unit.
    """
    first, last, included = _ends(dimension, start, through, before)
    parsed = parse_step(parse_unit(dimension.unit) if step is None else step)
    if dimension.unit not in FINER[parsed.unit]:
        raise InvalidRange(
            f"A step of {parsed} does not fit {dimension.name}, whose partitions are one {dimension.unit} long;"
            f" write {dimension.unit} or several of them."
        )
    dimension.check(first)
    return Values(dimension, [progression(first, last, parsed, dimension.zone, included=included)])


def complement(intervals: Iterable[Interval], size: int) -> list[Interval]:
    """Return what intervals in any order leave of 0..size-1, ascending and disjoint."""
    left, begin = list[Interval](), 0
    for low, high in sorted(intervals):
        if low > begin:
            left.append((begin, low))
        begin = max(begin, high)
    return [*left, (begin, size)] if begin < size else left


def _ends(dimension: Dimension, start: str, through: str | None, before: str | None) -> tuple[Moment, Moment, bool]:
    """Return both ends of a stretch of time, and whether the second belongs to it."""
    kind = dimension.kind
    if kind is str:
        raise InvalidRange(f"The strings of {dimension.name} have no ranges; list the values.")
    if (through is None) == (before is None):
        raise InvalidRange(f"A range of {dimension.name} needs either through (included) or before (left out).")
    ends = [deserialize(text, kind) for text in (start, through if before is None else before) if text is not None]
    if len(ends) != 2:
        raise InvalidRange(f"A range of {dimension.name} needs the moment from which it begins.")
    return cast(date, ends[0]), cast(date, ends[1]), before is None
