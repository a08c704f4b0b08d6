"""What the property tests of partitions draw from: keys of every allowed type, small sets with plain twins."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from hypothesis import strategies as st

from flowstone.partition import (
    Dimension,
    Key,
    KeyElement,
    PartitionSet,
    Span,
    Values,
    product,
    range_of,
    serialize,
    values_of,
)
from flowstone.partition.keys import ElementType, KeyType

# Reserved characters, marks that combine, and the ends of the planes are drawn far more often than chance would.
_AWKWARD = st.sampled_from(
    [*"%|%|aA0 .,\"'()", "\x00", "\n", "\x1f", "\x7f", "\x85", "\x9f", "é", "\u0301", "\uffff", "𐀀"]
)
_CHARACTERS = st.characters(exclude_categories=["Cs"]) | _AWKWARD

texts = (
    st.text(_CHARACTERS, min_size=1, max_size=12)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: text != "")
)
instants = st.datetimes(timezones=st.just(UTC)).map(lambda value: value.replace(microsecond=0))
ELEMENTS: dict[ElementType, st.SearchStrategy[KeyElement]] = {str: texts, date: st.dates(), datetime: instants}
element_types: st.SearchStrategy[ElementType] = st.sampled_from([str, date, datetime])
key_types: st.SearchStrategy[KeyType] = element_types | st.lists(element_types, min_size=1, max_size=5).map(tuple)


def keys_of(type_: KeyType) -> st.SearchStrategy[Key]:
    """Draw keys of one type."""
    if isinstance(type_, tuple):
        return st.tuples(*(ELEMENTS[element] for element in type_))
    return ELEMENTS[type_]


@st.composite
def typed_keys(draw: st.DrawFn) -> tuple[KeyType, Key]:
    """Draw a type and a key of it."""
    type_ = draw(key_types)
    return type_, draw(keys_of(type_))


@st.composite
def typed_pairs(draw: st.DrawFn) -> tuple[Key, Key]:
    """Draw two keys of one type."""
    keys = keys_of(draw(key_types))
    return draw(keys), draw(keys)


@dataclass(frozen=True)
class Twin:
    """A set, and the same keys as a plain sorted list made without the code under test."""

    made: PartitionSet
    plain: list[Key]


DAY0 = date(2013, 1, 1)
HOUR0 = datetime(2013, 1, 1, tzinfo=UTC)
REGION = Dimension("region", "string")
CARRIER = Dimension("carrier", "string")
DAY = Dimension("day", "date")
HOUR = Dimension("hour", "datetime")


@st.composite
def _strings(draw: st.DrawFn, dimension: Dimension) -> tuple[Values, list[KeyElement]]:
    items = draw(st.lists(st.sampled_from(["a", "b", "c|", "%", "é"]), min_size=1, max_size=6))
    return values_of(dimension, [serialize(item) for item in items]), sorted(set(items))


@st.composite
def _moments(
    draw: st.DrawFn, dimension: Dimension, first: date, unit: timedelta, word: str
) -> tuple[Values, list[KeyElement]]:
    size = draw(st.integers(1, 9))
    stride = draw(st.integers(1, 3))
    start = first + draw(st.integers(0, 5)) * unit
    all_ = [start + place * unit for place in range(size)]
    plain = all_[::stride]
    made = range_of(dimension, serialize(start), through=serialize(all_[-1]), step=f"{stride} {word}s")
    gone = draw(st.sets(st.sampled_from(all_), max_size=len(plain)))
    low, high = sorted(draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))
    span = Span(serialize(first + low * unit), through=serialize(first + high * unit)) if draw(st.booleans()) else None
    left = [
        value
        for value in plain
        if value not in gone and not (span is not None and first + low * unit <= value <= first + high * unit)
    ]
    if not left:
        return made, list(plain)
    return made.without([serialize(value) for value in gone], [span] if span else []), list(left)


def axis_values(dimension: Dimension) -> st.SearchStrategy[tuple[Values, list[KeyElement]]]:
    """Draw the values of one of the four dimensions above, with their plain twin."""
    if dimension.type == "string":
        return _strings(dimension)
    if dimension.type == "date":
        return _moments(dimension, DAY0, timedelta(days=1), "day")
    return _moments(dimension, HOUR0, timedelta(hours=1), "hour")


dimension_lists = st.lists(st.sampled_from([REGION, CARRIER, DAY, HOUR]), min_size=1, max_size=3, unique=True).map(
    tuple
)


@st.composite
def twins(draw: st.DrawFn, dimensions: tuple[Dimension, ...] | None = None) -> Twin:
    """Draw a product without some combinations, and its plain twin."""
    axes = draw(dimension_lists) if dimensions is None else dimensions
    drawn = [draw(axis_values(axis)) for axis in axes]
    combinations = draw(st.lists(_combination([plain for _, plain in drawn]), max_size=5))
    rows = [
        row
        for row in itertools.product(*(plain for _, plain in drawn))
        if not any(all(row[level] == value for level, value in one.items()) for one in combinations)
    ]
    if not rows:
        combinations, rows = [], list(itertools.product(*(plain for _, plain in drawn)))
    named = [{axes[level].name: serialize(value) for level, value in one.items()} for one in combinations]
    made = product(axes, [values for values, _ in drawn], named)
    return Twin(made, [row[0] if len(axes) == 1 else row for row in sorted(rows)])


def _combination(columns: list[list[KeyElement]]) -> st.SearchStrategy[dict[int, KeyElement]]:
    optional: dict[int, st.SearchStrategy[KeyElement]] = {
        level: st.sampled_from(column) for level, column in enumerate(columns)
    }
    named: Callable[[dict[int, KeyElement]], bool] = bool
    return st.fixed_dictionaries({}, optional=optional).filter(named)
