"""Intervals: any part of a set as a text for people, `2013-01-01..2013-03-31, 2013-04-02 (91)`, and back.

`a..b` means every key of the set from a to b, both included, in the set's ascending order, whatever the set
leaves out between them; so a text is read back exactly with the set it was made from. The number at the end
counts keys. A key that holds a comma, a quote, a bracket, white space or dots where they would mislead is
written as a JSON string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from flowstone.errors import InvalidSet
from flowstone.partition.dimensions import Dimension
from flowstone.partition.keys import SEPARATOR, Key, shown
from flowstone.partition.making import explicit, product, union_all
from flowstone.partition.sets import PartitionSet
from flowstone.partition.values import Interval, range_of, values_of

_PLAIN = r"""[^,"()\s.…]+(?:\.[^,"()\s.…]+)*"""
_KEY = rf'{_PLAIN}|"(?:[^"\\]|\\.)*"'
_SPAN = re.compile(rf"({_KEY})(?:\.\.({_KEY}))?")
_COUNT = re.compile(r"\s*\((\d{1,19})\)\s*")
_COMMA = re.compile(r"\s*,\s*")
_CUT = "…"


@dataclass(frozen=True)
class _Written:
    """One interval as it stands in a text."""

    first: str
    last: str


def compress(partitions: PartitionSet, chosen: Iterable[int | Key], *, limit: int | None = None) -> str:
    """Return a part of a set as intervals and the number of keys in it.

    Args:
        partitions: the set that the part belongs to.
        chosen: positions in it (int), or keys, in any order; repeated ones count once.
        limit: most characters of the answer; what does not fit is written as `…`, which `expand` refuses.

    Raises:
        InvalidSet: a position or key is not in the set.
    """
    ascending = partitions.ordered("Ascending")
    ranks = sorted({_position(partitions, ascending, one) for one in chosen})
    spans = (_written(ascending, low, high) for low, high in runs_of(ranks))
    return _joined(spans, f"({len(ranks)})", limit)


def expand(where: PartitionSet | Sequence[Dimension], text: str) -> PartitionSet:
    """Return the keys that a text of intervals names, the inverse of `compress`.

    Args:
        where: the set that the text was made from; or dimensions, and then `a..b` is every partition from a to b,
            which may differ in one date or datetime.
        text: intervals, separated by commas; the number at the end may be left out.

    Raises:
        InvalidSet: the text is no list of intervals, was cut, names keys outside the set, or counts differently.
        InvalidPartition, InvalidRange: a key is none of the dimensions.
    """
    written, count = _parse(text)
    if isinstance(where, PartitionSet):
        found = where.subset(_interval(where.ordered("Ascending"), one) for one in written)
    else:
        found = union_all([_from_dimensions(where, one) for one in written])
    if count is not None and count != len(found):
        raise InvalidSet(f"{shown(text)} says {count} keys, but the intervals hold {len(found)}; correct either.")
    return found


def runs_of(ranks: Iterable[int]) -> Iterator[Interval]:
    """Yield the stretches of ascending numbers, as the first and the one after the last."""
    low = high = None
    for rank in ranks:
        if rank != high:
            if low is not None and high is not None:
                yield low, high
            low = rank
        high = rank + 1
    if low is not None and high is not None:
        yield low, high


def _position(partitions: PartitionSet, ascending: PartitionSet, one: int | Key) -> int:
    """Return the ascending position of a position or key."""
    if type(one) is not int:
        found = ascending.find(one)
        if found is None:
            raise InvalidSet(f"{shown(one)} is not in {partitions!r}; name keys of the set.")
        return found
    if not 0 <= one < len(partitions):
        raise InvalidSet(f"There is no position {one} in a set of {len(partitions)} keys; the first is 0.")
    return one if partitions is ascending else len(partitions) - 1 - one


def _written(ascending: PartitionSet, low: int, high: int) -> str:
    first = _quoted(ascending.text(low))
    return first if high - low == 1 else f"{first}..{_quoted(ascending.text(high - 1))}"


def _quoted(text: str) -> str:
    return text if re.fullmatch(_PLAIN, text) else json.dumps(text, ensure_ascii=False)


def _joined(spans: Iterator[str], count: str, limit: int | None) -> str:
    written, room = list[str](), None if limit is None else limit - len(count) - 1
    for span in spans:
        size = len(span) + (2 if written else 0)
        if room is not None and size > room:
            # Take back what is needed to say that something is missing.
            while written and room < len(", " + _CUT):
                room += len(written.pop()) + 2
            written.append(_CUT)
            break
        written.append(span)
        room = None if room is None else room - size
    return " ".join([*([", ".join(written)] if written else []), count])


def _parse(text: Any) -> tuple[list[_Written], int | None]:
    """Return the intervals of a text, and the number at its end."""
    if not isinstance(text, str):
        raise InvalidSet("Intervals are a text such as '2013-01-01..2013-03-31 (90)'.")
    written, place, more = list[_Written](), 0, True
    while more and (match := _SPAN.match(text, place)) is not None:
        first = _unquoted(match[1])
        written.append(_Written(first, first if match[2] is None else _unquoted(match[2])))
        comma = _COMMA.match(text, match.end())
        more, place = comma is not None, match.end() if comma is None else comma.end()
    count = _COUNT.fullmatch(text, place)
    if (count is None and text[place:].strip()) or more == bool(written) or not (written or count):
        raise InvalidSet(f"{shown(text)} is no list of intervals; write a..b, c (number), and nothing cut by …")
    return written, None if count is None else int(count[1])


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise InvalidSet(f"{shown(text)} is no JSON string; quote keys as json.dumps does.") from None


def _interval(ascending: PartitionSet, one: _Written) -> Interval:
    places = [ascending.find(ascending.parse(text)) for text in (one.first, one.last)]
    if places[0] is None or places[1] is None or places[0] > places[1]:
        raise InvalidSet(
            f"{shown(one.first)}..{shown(one.last)} is no interval of {ascending!r}; name keys of it,"
            " the earlier first."
        )
    return places[0], places[1] + 1


def _from_dimensions(dimensions: Sequence[Dimension], one: _Written) -> PartitionSet:
    """Return the partitions from one key to another that differ in at most one date or datetime."""
    first, last = explicit(dimensions, [one.first]), explicit(dimensions, [one.last])
    starts, ends = (text.split(SEPARATOR) for text in (one.first, one.last))
    differing = [place for place, (a, b) in enumerate(zip(starts, ends, strict=True)) if a != b]
    if not differing:
        return first
    place = differing[0]
    if len(differing) > 1 or not isinstance(first.values[place][0], date):
        raise InvalidSet(
            f"Between {shown(one.first)} and {shown(one.last)} only a set knows its keys; give the set, or ends that"
            " differ in one date or datetime."
        )
    values = [
        range_of(axis, starts[level], through=ends[level]) if level == place else values_of(axis, [starts[level]])
        for level, axis in enumerate(last.dimensions)
    ]
    return product(dimensions, values)
