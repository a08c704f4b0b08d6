"""Products without some combinations: `excludeCombinations`.

A combination names a value for some of the dimensions, the others are free; one that names carrier and day
takes out that carrier on that day in every region. The tree is built from the first dimension to the last.
What is left to exclude below a choice of values is the subset of combinations that agree with the choice so
far, kept as the bits of an int; choices with the same subset share one node, so the work follows the
exclusions and not the product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from flowstone.errors import InvalidSet
from flowstone.partition.tree import END, MAX_NODES, NOTHING, Forest, Node

Combination = Mapping[int, int]
"""Level to position, for the dimensions that are named."""


class Excluding:
    """Builds the tree of a product without combinations."""

    def __init__(self, forest: Forest, widths: Sequence[int], combinations: Sequence[Combination]) -> None:
        self._forest = forest
        self._widths = widths
        self._combinations = combinations
        self._full = [forest.full(widths[level:]) for level in range(len(widths) + 1)]
        self._done: dict[tuple[int, bytes], Node] = {}
        self._bytes = len(combinations) // 8 + 1
        self._work = 0
        self._naming = [_bits(level in one for one in combinations) for level in range(len(widths))]
        self._complete = [_bits(max(one) < level for one in combinations) for level in range(len(widths) + 1)]

    def root(self) -> Node:
        """Return the tree of the product without the combinations."""
        return self._below(0, (1 << len(self._combinations)) - 1)

    def _below(self, level: int, left: int) -> Node:
        """Return the tree from a level on, where the combinations in `left` agree with the choice so far."""
        if left & self._complete[level]:
            return NOTHING
        if left == 0 or level == len(self._widths):
            return self._full[level] if left == 0 else END
        # As bytes, because ints hash modulo 2**61 - 1, where bits 61 apart are the same.
        key = level, left.to_bytes(self._bytes, "little")
        if key not in self._done:
            self._done[key] = self._node(level, left)
        return self._done[key]

    def _node(self, level: int, left: int) -> Node:
        free = left & ~self._naming[level]
        others, done = self._below(level + 1, free), self._complete[level + 1]
        runs = [(0, others)]
        for position, agreeing in sorted(self._named(level, left & self._naming[level]).items()):
            # Most combinations end here, so that is asked before anything is looked up.
            child = NOTHING if agreeing & done else self._below(level + 1, free | agreeing)
            runs += [(position, child), (position + 1, others)]
        return self._forest.node(self._widths[level], runs)

    def _named(self, level: int, combinations: int) -> dict[int, int]:
        """Return the positions that combinations name at a level, each with those that name it."""
        places: dict[int, int] = defaultdict(int)
        while combinations:
            bit = combinations & -combinations
            places[self._combinations[bit.bit_length() - 1][level]] |= bit
            combinations ^= bit
            self._work += 1
        if self._work > 10 * MAX_NODES:
            raise InvalidSet(
                "The excluded combinations overlap in too many ways; name all dimensions in more of them, or write"
                " several smaller sets."
            )
        return places


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << place for place, flag in enumerate(flags) if flag)
