"""From a key's text to what a function wants to know: typed values, dimensions by name, the window of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from flowstone.errors import InvalidPartition
from flowstone.partition import Key, KeyElement, deserialize

_TYPES: Mapping[str, type[KeyElement]] = {"date": date, "datetime": datetime, "string": str, "tenant": str}
_UNITS = {"date": "day", "datetime": "hour"}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One named element of the asset's key.

    Attributes:
        type: date, datetime, string or tenant.
        unit: How long a partition of a time dimension is; "" for the others.
        timezone: IANA name of the zone whose days are meant.
    """

    name: str
    type: str
    unit: str
    timezone: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Dimension:
        """Return the dimension of its JSON form, in which unit and timezone may be left out."""
        kind = given["type"]
        if kind not in _TYPES:
            raise ValueError(f"type {kind!r} is none of {', '.join(_TYPES)}")
        unit = given.get("unit") or _UNITS.get(kind, "")
        return cls(name=given["name"], type=kind, unit=unit, timezone=given.get("timezone") or "UTC")


def typed_key(text: str, dimensions: Sequence[Dimension]) -> Key:
    """Return the typed key of a text: a single value for one dimension, else a tuple.

    Raises:
        InvalidPartition: the text is no key of these dimensions.
    """
    types = tuple(_TYPES[one.type] for one in dimensions)
    if not types:
        raise InvalidPartition(f"{text!r}: the asset has no dimensions, so it has no keys")
    return deserialize(text, types[0] if len(types) == 1 else types)


def values_of(key: Key, dimensions: Sequence[Dimension]) -> dict[str, KeyElement]:
    """Return the elements of a key by the name of their dimension."""
    elements = key if isinstance(key, tuple) else (key,)
    return {one.name: element for one, element in zip(dimensions, elements, strict=True)}


def window_of(key: Key, dimensions: Sequence[Dimension]) -> tuple[datetime, datetime] | None:
    """Return the two UTC instants between which a key's time lies; None without exactly one dimension of time."""
    elements = key if isinstance(key, tuple) else (key,)
    timed = [(one, value) for one, value in zip(dimensions, elements, strict=True) if not isinstance(value, str)]
    return _window(*timed[0]) if len(timed) == 1 else None


def _window(dimension: Dimension, value: date) -> tuple[datetime, datetime]:
    # Zones are read from files; a worker whose keys have no time never pays for them.
    from flowstone.partition.grids import aligned, grid_of
    from flowstone.partition.steps import parse_unit
    from flowstone.partition.zones import datetime_of, zone

    grid = grid_of(parse_unit(dimension.unit), zone(dimension.timezone), type(value), value, value)
    position = aligned(grid, value, InvalidPartition)
    return datetime_of(grid.start(position)), datetime_of(grid.start(position + 1))
