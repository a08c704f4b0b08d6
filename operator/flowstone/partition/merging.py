"""The values of several sets put together, dimension by dimension, and how positions move by that."""

from __future__ import annotations

from collections.abc import Iterator

from flowstone.partition.keys import KeyElement
from flowstone.partition.progressions import Progression, progression
from flowstone.partition.steps import Step
from flowstone.partition.tree import Segment
from flowstone.partition.values import Listed, Piece, Values


def merged(first: Values, second: Values) -> Values:
    """Return the values that are in either.

    Progressions of one step that continue or overlap each other stay progressions; where others interleave, the
    values of that stretch are listed, which is the only place where a union builds anything.
    """
    pieces = sorted([*first.pieces, *second.pieces], key=lambda piece: piece[0])
    joined = list[Piece]()
    for piece in pieces:
        last = joined[-1] if joined else None
        one = None if last is None else _joined(last, piece)
        if one is None:
            joined.append(piece)
        else:
            joined[-1] = one
    return Values(first.dimension, joined)


def segments(part: Values, whole: Values) -> list[Segment]:
    """Return where each stretch of a part's positions lies in a whole that holds all of its values."""
    return list(_segments(part, whole, 0, len(part)))


def _segments(part: Values, whole: Values, low: int, high: int) -> Iterator[Segment]:
    if low >= high:
        return
    start, end = whole.below(part[low]), whole.below(part[high - 1])
    # Both are ascending: if as many values lie between the ends, they are the same values.
    if end - start == high - 1 - low:
        yield low, high, start
        return
    middle = (low + high) // 2
    yield from _segments(part, whole, low, middle)
    yield from _segments(part, whole, middle, high)


def _joined(first: Piece, second: Piece) -> Piece | None:
    """Return two pieces as one, None if they are better kept apart; the second begins no earlier than the first."""
    apart = first[len(first) - 1] < second[0]  # type: ignore[operator]  # one dimension holds one type
    if isinstance(first, Progression) and isinstance(second, Progression):
        one = _continued(first, second)
        if one is not None and (not apart or len(one) == len(first) + len(second)):
            return one
    if not apart and (inside := _holder(first, second)) is not None:
        return inside
    if apart and (isinstance(first, Progression) or isinstance(second, Progression)):
        return None
    return Listed(tuple(sorted({*_all(first), *_all(second)})))


def _continued(first: Progression, second: Progression) -> Progression | None:
    """Return the progression that holds both, if they are of one step and phase."""
    a, b = first.grid, second.grid
    if (a.unit, a.zone, first.stride) != (b.unit, b.zone, second.stride):
        return None
    end = max(first[len(first) - 1], second[len(second) - 1])
    one = progression(first[0], end, Step(first.stride, a.unit), a.zone)
    return one if one.find(second[0]) is not None else None


def _holder(first: Piece, second: Piece) -> Progression | None:
    """Return the one that is a progression and holds every value of the other, which is a list."""
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Progression) and isinstance(other, Listed):
            return one if all(one.find(value) is not None for value in other.items) else None
    return None


def _all(piece: Piece) -> Iterator[KeyElement]:
    return piece.values(0, len(piece))
