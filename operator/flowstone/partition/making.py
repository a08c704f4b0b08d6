"""How sets are made: a product of dimensions, keys that are listed, a union of sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flowstone.errors import InvalidSet
from flowstone.partition.dimensions import Dimension, key_type
from flowstone.partition.exclusions import Combination, Excluding
from flowstone.partition.keys import KeyElement, deserialize, shown
from flowstone.partition.merging import merged, segments
from flowstone.partition.sets import PartitionSet, pruned
from flowstone.partition.tree import Forest
from flowstone.partition.values import Interval, Values, complement, listed

Named = dict[int, KeyElement]


def product(
    dimensions: Sequence[Dimension],
    values: Mapping[str, Values] | Sequence[Values],
    exclude_combinations: Sequence[Mapping[str, str]] = (),
) -> PartitionSet:
    """Return every combination of the dimensions' values, without the excluded ones.

    Args:
        dimensions: in the order of the key's elements.
        values: of each dimension, by name or in the same order.
        exclude_combinations: dimension to canonical text; dimensions left out are free. A combination that is not in
            the product changes nothing.

    Raises:
        InvalidSet: values and dimensions do not fit together, or nothing is left.
        InvalidPartition: a text is none of its dimension, or keys would be longer than 512 bytes.
    """
    axes = _checked(dimensions)
    named = [_parsed(axes, one) for one in exclude_combinations]
    kept = _without_values(_in_order(axes, values), named)
    forest, widths = Forest(), [len(one) for one in kept]
    combinations = [found for one in named if (found := _places(kept, one)) is not None]
    root = Excluding(forest, widths, combinations).root() if combinations else forest.full(widths)
    if root.count == 0:
        raise InvalidSet("The excluded combinations leave no key; exclude fewer.")
    return pruned(forest, axes, kept, root)


def explicit(dimensions: Sequence[Dimension], keys: Iterable[str]) -> PartitionSet:
    """Return the set of listed keys, given as canonical texts in any order; repeated ones count once.

    Raises:
        InvalidSet: no keys.
        InvalidPartition: a text is no key of these dimensions.
    """
    axes = _checked(dimensions)
    if isinstance(keys, str):
        raise InvalidSet(f"Keys are a list; write [{shown(keys)}].")
    rows = {_elements(axes, text) for text in keys}
    if not rows:
        raise InvalidSet("The set has no keys; list at least one.")
    columns = [listed(axis, (row[place] for row in rows)) for place, axis in enumerate(axes)]
    numbers = [{value: position for position, value in enumerate(column)} for column in columns]
    places = sorted(tuple(number[value] for number, value in zip(numbers, row, strict=True)) for row in rows)
    forest = Forest()
    return pruned(forest, axes, columns, forest.of_rows([len(column) for column in columns], places))


def union(*sets: PartitionSet) -> PartitionSet:
    """Return the keys that are in any of some sets of the same dimensions, ascending; overlaps count once.

    Raises:
        InvalidSet: no sets, or their dimensions differ.
    """
    return union_all(sets)


def union_all(sets: Sequence[PartitionSet]) -> PartitionSet:
    """Return the union of listed sets; see `union`."""
    if not sets:
        raise InvalidSet("A union needs at least one set.")
    if any(one.dimensions != sets[0].dimensions for one in sets):
        raise InvalidSet("The sets of a union have different dimensions; write all with the same ones.")
    whole = [one.whole() for one in sets if len(one)] or [sets[0].whole()]
    # In pairs, then pairs of pairs: many small sets would be copied again and again if they were added one by one.
    while len(whole) > 1:
        whole = [_union(*whole[at : at + 2]) for at in range(0, len(whole), 2)]
    return whole[0]


def _union(first: PartitionSet, second: PartitionSet | None = None) -> PartitionSet:
    if second is None:
        return first
    forest = Forest()
    values = [merged(a, b) for a, b in zip(first.values, second.values, strict=True)]
    widths = [len(one) for one in values]
    roots = [
        forest.mapped(one.root, widths, [segments(a, b) for a, b in zip(one.values, values, strict=True)])
        for one in (first, second)
    ]
    return pruned(forest, first.dimensions, values, forest.union(*roots))


def _checked(dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    names = [dimension.name for dimension in dimensions]
    if not names:
        raise InvalidSet("A set needs at least one dimension.")
    if len(set(names)) != len(names):
        raise InvalidSet(f"The dimensions {', '.join(names)} are not all different; name each once.")
    return tuple(dimensions)


def _in_order(dimensions: tuple[Dimension, ...], values: Mapping[str, Values] | Sequence[Values]) -> list[Values]:
    names = [dimension.name for dimension in dimensions]
    given = values if isinstance(values, Mapping) else {one.dimension.name: one for one in values}
    if len(values) != len(names) or set(given) != set(names):
        raise InvalidSet(f"Values are given for {_names(given)}, the dimensions are {_names(names)}; give each.")
    for dimension in dimensions:
        if given[dimension.name].dimension != dimension:
            raise InvalidSet(f"The values of {dimension.name} were made for another dimension of that name.")
        if not given[dimension.name]:
            raise InvalidSet(f"The dimension {dimension.name} has no values; give at least one.")
    return [given[name] for name in names]


def _parsed(dimensions: tuple[Dimension, ...], combination: Mapping[str, str]) -> Named:
    """Return the values that a combination names, by their place among the dimensions."""
    unknown = set(combination) - {dimension.name for dimension in dimensions}
    if unknown or not combination:
        raise InvalidSet(
            f"An excluded combination names {_names(unknown)};"
            f" name one or more of {_names(dimension.name for dimension in dimensions)}."
        )
    return {
        level: dimension.parse(combination[dimension.name])
        for level, dimension in enumerate(dimensions)
        if dimension.name in combination
    }


def _without_values(values: Sequence[Values], named: Iterable[Named]) -> list[Values]:
    """Return the values without those that a combination of one dimension takes out, which needs no tree."""
    out: list[list[Interval]] = [[] for _ in values]
    for level, value in (next(iter(one.items())) for one in named if len(one) == 1):
        place = values[level].find(value)
        out[level] += [] if place is None else [(place, place + 1)]
    return [one.keep(complement(gone, len(one))) if gone else one for one, gone in zip(values, out, strict=True)]


def _places(values: Sequence[Values], named: Named) -> Combination | None:
    """Return the positions that a combination names, None if one of its values is not in the product."""
    found = {level: values[level].find(value) for level, value in named.items()}
    places = {level: place for level, place in found.items() if place is not None}
    return places if len(places) == len(found) else None


def _elements(dimensions: tuple[Dimension, ...], text: str) -> tuple[KeyElement, ...]:
    key = deserialize(text, key_type(dimensions))
    elements = key if isinstance(key, tuple) else (key,)
    return tuple([axis.check(element) for axis, element in zip(dimensions, elements, strict=True)])


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
