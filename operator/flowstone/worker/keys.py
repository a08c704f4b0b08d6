"""From a key's text to what a function wants to know: typed values, dimensions by name, the window of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from flowstone.partition.dimensions import Dimension, key_type
from flowstone.partition.keys import Key, KeyElement, deserialize


class Window(NamedTuple):
    """The time that a partition covers, as two UTC instants: `start, end = p.window`."""

    start: datetime
    end: datetime


def dimension_of(given: Mapping[str, Any]) -> Dimension:
    """Return the dimension of its JSON form, in which unit and timezone may be null.

    Raises:
        InvalidSet: it is no dimension.
    """
    kind: Any = "string" if given["type"] == "tenant" else given["type"]  # a tenant's id is a text
    return Dimension(given["name"], kind, given.get("unit"), given.get("timezone") or "UTC")


def typed_key(text: str, dimensions: Sequence[Dimension]) -> Key:
    """Return the typed key of a text: a single value for one dimension, else a tuple.

    Raises:
        InvalidPartition: the text is no key of these dimensions.
    """
    return deserialize(text, key_type(tuple(dimensions)))


def values_of(key: Key, dimensions: Sequence[Dimension]) -> dict[str, KeyElement]:
    """Return the elements of a key by the name of their dimension."""
    elements = key if isinstance(key, tuple) else (key,)
    return {one.name: element for one, element in zip(dimensions, elements, strict=True)}


def window_of(values: Mapping[str, KeyElement], dimensions: Sequence[Dimension]) -> Window | None:
    """Return the time that a key's values cover; None without exactly one dimension of time."""
    timed = [one for one in dimensions if one.type != "string"]
    window = timed[0].window(values[timed[0].name]) if len(timed) == 1 else None
    return Window(window.start, window.end) if window else None
