"""Sets of partitions: products, explicit keys, unions; lazy sequences in the order of the typed tuple.

Order: strings by code point (as COLLATE "C" does in UTF-8), dates and datetimes by time, dimension after
dimension.

A set is the values of each dimension and a tree of which combinations belong to it (see `tree`). Only
values that some key uses are kept and equal parts of the tree are one object, so a set has one form,
however it was described: a product, the same keys listed, and the union of its pieces have the same order
and the same hash.

The hash is a sha256 over the dimensions, the values and the tree. Up to 100,000 values of a dimension count
one by one; a dimension with more counts by its description, as first and last value, step and number, so
that hashing never takes longer than the description is. Above that limit, and only there, two descriptions
of the same values may differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, reduce
from hashlib import sha256
from typing import Any, Generic, Literal, TypeVar, cast, overload

from flowstone.errors import InvalidPartition, InvalidSet
from flowstone.partition.dimensions import Dimension, Window, key_type
from flowstone.partition.keys import MAX_KEY_BYTES, SEPARATOR, Key, KeyElement, deserialize, shown
from flowstone.partition.progressions import Progression
from flowstone.partition.tree import (
    END,
    NOTHING,
    Forest,
    Node,
    Segment,
    levels_of,
    rank_of,
    select,
    used,
    walk,
)
from flowstone.partition.values import Interval, Values

P = TypeVar("P")
T = TypeVar("T")
Order = Literal["Ascending", "Descending"]
MAX_KEYS = sys.maxsize
"""Most keys of one set, about 9.2e18: what Python's `len` can say."""

HASHED_VALUES = 100_000
"""A dimension with at most so many values is hashed value by value, one with more by its description."""

CACHED_VALUES = 10_000
"""The last dimension's values and texts are kept while iterating, up to so many."""


class PartitionSet(Sequence[Key]):
    """Keys of some dimensions, ascending or descending; lazy, immutable, never empty unless a slice is."""

    def __init__(
        self, dimensions: tuple[Dimension, ...], values: tuple[Values, ...], root: Node, picked: range | None = None
    ) -> None:
        self.dimensions = dimensions
        self.values = values
        self.root = root
        self._picked = range(root.count) if picked is None else picked

    def __len__(self) -> int:
        return len(self._picked)

    @overload
    def __getitem__(self, index: int) -> Key: ...
    @overload
    def __getitem__(self, index: slice) -> PartitionSet: ...
    def __getitem__(self, index: int | slice) -> Key | PartitionSet:
        if isinstance(index, slice):
            return self._view(self._picked[index])
        places = select(self.root, self._picked[index])
        if len(places) == 1:
            return self.values[0][places[0]]
        return tuple([values[place] for values, place in zip(self.values, places, strict=True)])

    def __iter__(self) -> Iterator[Key]:
        return self.iterate_from(0)

    def __reversed__(self) -> Iterator[Key]:
        return iter(self[::-1])

    def __contains__(self, key: object) -> bool:
        return self.find(key) is not None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PartitionSet):
            same = self.dimensions == other.dimensions and len(self) == len(other)
            return same and (len(self) == 0 or (self[0] == other[0] and self.hash == other.hash))
        if isinstance(other, list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.dimensions, len(self)))

    def __repr__(self) -> str:
        names = ", ".join(dimension.name for dimension in self.dimensions)
        ends = f"{self.text(0)}..{self.text(len(self) - 1)}" if len(self) else "empty"
        return f"PartitionSet({names}: {ends}, {len(self)} keys)"

    def find(self, key: object) -> int | None:
        """Return the position of a key, or None, whatever it is asked for."""
        elements = key if len(self.values) > 1 else (key,)
        if type(elements) is not tuple or len(elements) != len(self.values):
            return None
        places = [values.find(element) for values, element in zip(self.values, elements, strict=True)]
        if None in places:
            return None
        rank = rank_of(self.root, tuple(cast(list[int], places)))
        return self._picked.index(rank) if rank is not None and rank in self._picked else None

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the position of a key; InvalidPartition, a ValueError, if it is not in the set."""
        found = self.find(value)
        if found is None or found not in range(*slice(start, stop).indices(len(self))):
            raise InvalidPartition(f"{shown(value)} is not in {self!r}; ask with `in` first.")
        return found

    def count(self, value: Any) -> int:
        """Return 1 if the key is in the set, else 0."""
        return int(value in self)

    def parse(self, text: str) -> Key:
        """Return the key of a canonical text; InvalidPartition if it is none of these dimensions' type."""
        return deserialize(text, key_type(self.dimensions))

    def text(self, position: int) -> str:
        """Return the canonical text of the key at a position."""
        places = select(self.root, self._picked[position])
        return SEPARATOR.join([values.text(place) for values, place in zip(self.values, places, strict=True)])

    def iterate_from(self, position: int) -> Iterator[Key]:
        """Yield the keys from a position on, without visiting those before it; constant memory."""
        picked = self._picked[position:]
        if abs(picked.step) != 1:
            return map(self.__getitem__, range(len(self))[position:])
        if len(self.values) == 1:
            return self._elements(picked)
        return self._tuples(picked)

    def iter_text(self, start: int = 0) -> Iterator[str]:
        """Yield the canonical texts of the keys from a position on; constant memory, and faster than serializing."""
        picked = self._picked[start:]
        if abs(picked.step) != 1:
            return map(self.text, range(len(self))[start:])
        return self._texts(picked)

    def ordered(self, order: Order) -> PartitionSet:
        """Return the same keys in an order."""
        if order not in ("Ascending", "Descending"):
            raise InvalidSet(f"{shown(order)} is no order; write Ascending or Descending.")
        turned = (order == "Descending") == (self._picked.step > 0)
        return self._view(self._picked[::-1]) if turned else self

    def window(self, key: Any) -> Window | None:
        """Return the time a key of the set covers: that of its one time dimension, None if it has none.

        Raises:
            InvalidPartition: the key is not in the set, or its window leaves the years 1 to 9999.
            InvalidSet: the set has several time dimensions; ask each `dimensions[i].window(element)`.
        """
        self.index(key)
        elements = key if len(self.values) > 1 else (key,)
        places = [place for place, dimension in enumerate(self.dimensions) if dimension.type != "string"]
        if len(places) > 1:
            raise InvalidSet("The set has several time dimensions; ask dimensions[i].window(key[i]).")
        return self.dimensions[places[0]].window(elements[places[0]]) if places else None

    @cached_property
    def hash(self) -> str:
        """The sha256 of the set's content, 64 hexadecimal digits; the order does not change it."""
        whole = self.whole()
        digest = sha256(b"flowstone partition set 1\n")
        for dimension, values in zip(whole.dimensions, whole.values, strict=True):
            fields = [dimension.name, dimension.type, dimension.unit, dimension.timezone]
            digest.update(f"{json.dumps(fields)}\n".encode())
            for line in _described(values):
                digest.update(f"{line}\n".encode())
        for line in _tree_lines(whole.root):
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()

    def whole(self) -> PartitionSet:
        """Return the same keys ascending, as a set of its own if this is a slice.

        A slice with a step other than 1 is built key by key; for any other its tree is gone over once.
        """
        picked = self._picked if self._picked.step > 0 else self._picked[::-1]
        if picked == range(self.root.count):
            return self if picked is self._picked else self._view(picked)
        forest = Forest(self.root)
        if picked.step == 1:
            return pruned(forest, self.dimensions, self.values, forest.cut(self.root, picked.start, picked.stop))
        rows = [select(self.root, rank) for rank in picked]
        root = forest.of_rows([len(values) for values in self.values], rows)
        return pruned(forest, self.dimensions, self.values, root)

    def subset(self, intervals: Iterable[Interval]) -> PartitionSet:
        """Return the keys at some intervals of positions, counted in ascending order, as a set of its own.

        Args:
            intervals: each the first position and the one after the last, 0 <= first <= last <= len(self); in any
                order, and overlaps count once.
        """
        whole = self.whole()
        forest = Forest(whole.root)
        roots = [forest.cut(whole.root, low, high) for low, high in intervals] or [NOTHING]
        while len(roots) > 1:
            roots = [reduce(forest.union, roots[at : at + 2]) for at in range(0, len(roots), 2)]
        return pruned(forest, self.dimensions, whole.values, roots[0])

    def _view(self, picked: range) -> PartitionSet:
        return PartitionSet(self.dimensions, self.values, self.root, picked)

    def _elements(self, picked: range) -> Iterator[KeyElement]:
        column = _Column(self.values[0], Values.between, len(picked))
        for _, low, high in self._stretches(picked, (), lambda prefix, level, place: prefix):
            yield from column.stretch(low, high, backwards=picked.step < 0)

    def _tuples(self, picked: range) -> Iterator[Key]:
        columns = [_Column(values, Values.between, len(picked)) for values in self.values]

        def extend(prefix: tuple[KeyElement, ...], level: int, place: int) -> tuple[KeyElement, ...]:
            return (*prefix, columns[level].at(place))

        start: tuple[KeyElement, ...] = ()
        for prefix, low, high in self._stretches(picked, start, extend):
            for value in columns[-1].stretch(low, high, backwards=picked.step < 0):
                yield (*prefix, value)

    def _texts(self, picked: range) -> Iterator[str]:
        columns = [_Column(values, Values.texts, len(picked)) for values in self.values]

        def extend(prefix: str, level: int, place: int) -> str:
            return f"{prefix}{columns[level].at(place)}{SEPARATOR}"

        for prefix, low, high in self._stretches(picked, "", extend):
            yield from map(prefix.__add__, columns[-1].stretch(low, high, backwards=picked.step < 0))

    def _stretches(self, picked: range, prefix: P, extend: Callable[[P, int, int], P]) -> Iterator[tuple[P, int, int]]:
        backwards = picked.step < 0
        ascending = picked[::-1] if backwards else picked
        return walk(self.root, ascending.start, ascending.stop, prefix, extend, backwards=backwards)


class _Column(Generic[T]):
    """One dimension's values or texts while a set is iterated; kept if they are few and used often."""

    def __init__(self, values: Values, read: Callable[[Values, int, int], Iterator[T]], wanted: int) -> None:
        self._values = values
        self._read = read
        size = len(values)
        self._kept = list(read(values, 0, size)) if size <= min(CACHED_VALUES, wanted) else None

    def at(self, place: int) -> T:
        """Return one entry."""
        return next(self._read(self._values, place, place + 1)) if self._kept is None else self._kept[place]

    def stretch(self, low: int, high: int, *, backwards: bool) -> Iterable[T]:
        """Return the entries low..high-1, in descending order if backwards."""
        if self._kept is not None:
            entries = self._kept[low:high]
            return reversed(entries) if backwards else entries
        return map(self.at, range(high - 1, low - 1, -1)) if backwards else self._read(self._values, low, high)


def pruned(forest: Forest, dimensions: tuple[Dimension, ...], values: Sequence[Values], root: Node) -> PartitionSet:
    """Return a set in its one form: without values that no key uses.

    Raises:
        InvalidSet: more keys than Python can count.
        InvalidPartition: a key would be longer than 512 bytes.
    """
    if root.count == 0:
        return PartitionSet(dimensions, tuple(one.keep([]) for one in values), root)
    if root.count > MAX_KEYS:
        raise InvalidSet(f"The set has {root.count} keys, more than {MAX_KEYS}; write several smaller ones.")
    kept = [used(nodes) for nodes in levels_of(root)]
    if any(intervals != [(0, len(one))] for intervals, one in zip(kept, values, strict=True)):
        values = [one.keep(intervals) for intervals, one in zip(kept, values, strict=True)]
        root = forest.mapped(root, [len(one) for one in values], [closed_up(intervals) for intervals in kept])
    _check_length(dimensions, values, root)
    return PartitionSet(dimensions, tuple(values), root)


def closed_up(intervals: Iterable[Interval]) -> list[Segment]:
    """Return how positions move when only those of some intervals are kept."""
    moved, new = list[Segment](), 0
    for low, high in intervals:
        moved.append((low, high, new))
        new += high - low
    return moved


def _check_length(dimensions: tuple[Dimension, ...], values: Sequence[Values], root: Node) -> None:
    widest = sum(one.widest(0, len(one)) for one in values) + len(values) - 1
    if widest > MAX_KEY_BYTES and _longest(root, values, 0, {}) > MAX_KEY_BYTES:
        names = ", ".join(dimension.name for dimension in dimensions)
        raise InvalidPartition(
            f"Keys of {names} would have up to {widest} bytes, {MAX_KEY_BYTES} are allowed; use shorter values."
        )


def _longest(node: Node, values: Sequence[Values], level: int, done: dict[Node, int]) -> int:
    """Return the most bytes that the text of a combination below a node has."""
    if node not in done:
        runs = [(run, child) for run, child in enumerate(node.children) if child.count]
        done[node] = max(
            (
                values[level].widest(node.starts[run], node.run_end(run))
                + (1 + _longest(child, values, level + 1, done) if child.children else 0)
                for run, child in runs
            ),
        )
    return done[node]


def _described(values: Values) -> Iterator[str]:
    """Yield the lines that stand for a dimension's values in the hash."""
    yield f"{len(values)} values"
    if len(values) <= HASHED_VALUES:
        yield from values.texts(0, len(values))
        return
    for piece in values.pieces:
        if isinstance(piece, Progression):
            first, last = piece.texts(0, 1), piece.texts(len(piece) - 1, len(piece))
            yield f"{next(first)} {next(last)} {piece.stride} {piece.grid.unit} {len(piece)}"
        else:
            yield from piece.texts(0, len(piece))


def _tree_lines(root: Node) -> Iterator[str]:
    """Yield one line for each node, children first, numbered in the order of their first use."""
    numbers: dict[Node, int] = {NOTHING: 0, END: 1}

    def visit(node: Node) -> Iterator[str]:
        for child in node.children:
            if child not in numbers:
                yield from visit(child)
        numbers[node] = len(numbers)
        runs = zip(node.starts, node.children, strict=True)
        yield " ".join(f"{start}>{numbers[child]}" for start, child in runs)

    return visit(root)
