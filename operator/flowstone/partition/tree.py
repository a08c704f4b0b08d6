"""The tree of a set: which combinations of positions belong to it, in lexicographic order, counted.

A node stands for one dimension. It cuts the positions of the dimension's values into runs; all positions of
a run lead to the same child, and the child says what is in the set for the dimensions that follow. So a
product of three dimensions is a chain of three nodes with one run each, whatever its size, and an exclusion
cuts a few runs.

Invariants:

1. Equal nodes are one object (a `Forest` interns them), and neighbouring runs have different children. So
   over the same values two sets are equal if and only if their roots are the same object.
2. A node's count is the sum over its runs of length times the child's count; `before` are the partial sums.
   The i-th combination and the rank of one are therefore a bisection per dimension.
3. `NOTHING` has count 0 and `END` has count 1; every path to `END` has one run per dimension.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

from flowstone.errors import InvalidSet

MAX_NODES = 300_000
"""Most nodes of one set (about 200 MB); only partial exclusions that overlap in every way come near."""

P = TypeVar("P")
Positions = tuple[int, ...]
Segment = tuple[int, int, int]
"""Positions from the first to before the second, which become those from the third on."""


class Node:
    """One dimension of a set, below one choice of the dimensions before it."""

    __slots__ = ("before", "children", "count", "starts", "width")

    def __init__(self, width: int, starts: tuple[int, ...], children: tuple[Node, ...], count: int = 0) -> None:
        self.width = width
        """How many values the dimension has; 0 for the two ends."""
        self.starts = starts
        """First position of each run; the first is 0."""
        self.children = children
        self.before = _sums(width, starts, children)
        """Combinations in the runs before each, and at last in all."""
        self.count = self.before[-1] if children else count

    def run_end(self, run: int) -> int:
        """Return the position after a run."""
        return self.starts[run + 1] if run + 1 < len(self.starts) else self.width


def _sums(width: int, starts: tuple[int, ...], children: tuple[Node, ...]) -> list[int]:
    sums, total = [0], 0
    for run, child in enumerate(children, start=1):
        end = starts[run] if run < len(starts) else width
        total += (end - starts[run - 1]) * child.count
        sums.append(total)
    return sums


NOTHING = Node(0, (), (), 0)
END = Node(0, (), (), 1)


class Forest:
    """Makes nodes, each only once.

    Args:
        root: A tree of another forest whose nodes this one is to use: it knows them from the beginning.
    """

    def __init__(self, root: Node = NOTHING) -> None:
        known = (node for level in levels_of(root) for node in level)
        self._nodes = {_identity(node.width, node.starts, node.children): node for node in known}
        self._room = MAX_NODES + len(self._nodes)

    def node(self, width: int, runs: Iterable[tuple[int, Node]]) -> Node:
        """Return the node of runs, given as first position and child, ascending from 0.

        Of runs that begin at the same position the last counts; one that begins after the last position is left out.
        """
        starts, children = list[int](), list[Node]()
        for start, child in runs:
            if starts and starts[-1] == start:
                del starts[-1], children[-1]
            if start < width and (not children or children[-1] is not child):
                starts.append(start)
                children.append(child)
        if not children or children == [NOTHING]:
            return NOTHING
        return self._interned(width, tuple(starts), tuple(children))

    def _interned(self, width: int, starts: tuple[int, ...], children: tuple[Node, ...]) -> Node:
        key = _identity(width, starts, children)
        found = self._nodes.get(key)
        if found is None:
            if len(self._nodes) >= self._room:
                raise InvalidSet(
                    "The exclusions overlap in too many ways; name all dimensions in more of them, or write several"
                    " smaller sets."
                )
            found = self._nodes[key] = Node(width, starts, children)
        return found

    def full(self, widths: Sequence[int]) -> Node:
        """Return the tree of a whole product."""
        node = END
        for width in reversed(widths):
            node = self.node(width, [(0, node)])
        return node

    def of_rows(self, widths: Sequence[int], rows: Sequence[Positions]) -> Node:
        """Return the tree of combinations that are listed, ascending and without duplicates."""
        return self._rows(widths, rows, 0)

    def _rows(self, widths: Sequence[int], rows: Sequence[Positions], level: int) -> Node:
        if level == len(widths):
            return END
        groups = groupby(rows, key=itemgetter(level))
        singles = ((place, self._rows(widths, list(group), level + 1)) for place, group in groups)
        return self.node(widths[level], _with_gaps(singles))

    def mapped(self, root: Node, widths: Sequence[int], segments: Sequence[Sequence[Segment]]) -> Node:
        """Return a tree over other values: each level's positions moved by its segments, those in none dropped."""
        done: dict[Node, Node] = {NOTHING: NOTHING, END: END}

        def move(node: Node, level: int) -> Node:
            if node not in done:
                children = [move(child, level + 1) for child in node.children]
                done[node] = self.node(widths[level], _moved_runs(node, children, segments[level]))
            return done[node]

        return move(root, 0)

    def union(self, first: Node, second: Node) -> Node:
        """Return the tree of what is in either of two trees of this forest over the same values."""
        done: dict[tuple[Node, Node], Node] = {}

        def join(a: Node, b: Node) -> Node:
            if a is b or b is NOTHING:
                return a
            if a is NOTHING:
                return b
            if (a, b) not in done:
                done[a, b] = self.node(a.width, ((at, join(x, y)) for at, x, y in _together(a, b)))
            return done[a, b]

        return join(first, second)

    def cut(self, node: Node, low: int, high: int) -> Node:
        """Return the tree of the combinations with ranks low..high-1, of a tree whose nodes this forest knows."""
        if low <= 0 and high >= node.count:
            return node
        if high <= max(low, 0) or low >= node.count:
            return NOTHING
        return self.node(node.width, self._cut_runs(node, low, high))

    def _cut_runs(self, node: Node, low: int, high: int) -> Iterator[tuple[int, Node]]:
        yield 0, NOTHING
        for run, child in enumerate(node.children):
            if child.count == 0:
                continue
            first, size = node.before[run], child.count
            start, end = node.starts[run], node.run_end(run)
            for begin, rank in _cut_places(start, end, first, size, low, high):
                yield begin, self.cut(child, low - rank, high - rank)
            yield end, NOTHING


def _identity(width: int, starts: tuple[int, ...], children: tuple[Node, ...]) -> tuple[object, ...]:
    """What equal nodes have in common; children are compared as objects, since each is there only once."""
    return width, starts, *map(id, children)


def select(root: Node, rank: int) -> Positions:
    """Return the combination with a rank in 0..count-1."""
    positions, node = list[int](), root
    while node.children:
        run = bisect_right(node.before, rank) - 1
        child = node.children[run]
        step, rank = divmod(rank - node.before[run], child.count)
        positions.append(node.starts[run] + step)
        node = child
    return tuple(positions)


def rank_of(root: Node, positions: Positions) -> int | None:
    """Return the rank of a combination, or None if it is not in the set."""
    rank, node = 0, root
    for position in positions:
        run = bisect_right(node.starts, position) - 1
        child = node.children[run]
        if child.count == 0:
            return None
        rank += node.before[run] + (position - node.starts[run]) * child.count
        node = child
    return rank


def walk(
    node: Node,
    low: int,
    high: int,
    prefix: P,
    extend: Callable[[P, int, int], P],
    *,
    backwards: bool = False,
    level: int = 0,
) -> Iterator[tuple[P, int, int]]:
    """Yield the combinations with ranks low..high-1 as stretches of the last dimension.

    Args:
        prefix: what stands before the first dimension.
        extend: makes the prefix of a level's position, from the prefix so far, the level and the position.
        backwards: yield the stretches in descending order.
    """
    runs = range(max(bisect_right(node.before, low) - 1, 0), bisect_left(node.before, high))
    for run in reversed(runs) if backwards else runs:
        child, base, start = node.children[run], node.before[run], node.starts[run]
        size = child.count
        if size == 0:
            continue
        first, last = max(low, base) - base, min(high, node.before[run + 1]) - base
        if not child.children:
            yield prefix, start + first, start + last
            continue
        steps = range(first // size, -(-last // size))
        for step in reversed(steps) if backwards else steps:
            ends = max(first - step * size, 0), min(last - step * size, size)
            longer = extend(prefix, level, start + step)
            yield from walk(child, *ends, longer, extend, backwards=backwards, level=level + 1)


def levels_of(root: Node) -> list[list[Node]]:
    """Return the nodes of each dimension."""
    levels = list[list[Node]]()
    nodes = {root: None} if root.children else {}
    while nodes:
        levels.append(list(nodes))
        nodes = {child: None for node in nodes for child in node.children if child.children}
    return levels


def used(nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Return the positions that any of a dimension's nodes uses, as ascending, disjoint intervals."""
    if any(NOTHING not in node.children for node in nodes):
        return [(0, nodes[0].width)]
    merged = list[tuple[int, int]]()
    for low, high in sorted({interval for node in nodes for interval in _used_by(node)}):
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return merged


def _used_by(node: Node) -> Iterator[tuple[int, int]]:
    for run, child in enumerate(node.children):
        if child.count:
            yield node.starts[run], node.run_end(run)


def _with_gaps(singles: Iterable[tuple[int, Node]]) -> Iterator[tuple[int, Node]]:
    """Yield runs of single positions with NOTHING between them."""
    yield 0, NOTHING
    for place, child in singles:
        yield place, child
        yield place + 1, NOTHING


def _moved_runs(node: Node, children: Sequence[Node], segments: Sequence[Segment]) -> Iterator[tuple[int, Node]]:
    yield 0, NOTHING
    for low, high, new in segments:
        run = bisect_right(node.starts, low) - 1
        while run < len(children) and node.starts[run] < high:
            yield max(node.starts[run], low) - low + new, children[run]
            run += 1
        yield high - low + new, NOTHING


def _together(a: Node, b: Node) -> Iterator[tuple[int, Node, Node]]:
    """Yield the runs over which both nodes have one child each."""
    for at in sorted({*a.starts, *b.starts}):
        yield at, a.children[bisect_right(a.starts, at) - 1], b.children[bisect_right(b.starts, at) - 1]


def _cut_places(start: int, end: int, first: int, size: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield where a cut run changes, each as a position and the rank at which its child's combinations begin."""
    inside = {start}
    for rank in (low, high):
        place = start + (rank - first) // size
        inside |= {at for at in (place, place + 1) if start < at < end}
    for at in sorted(inside):
        yield at, first + (at - start) * size
