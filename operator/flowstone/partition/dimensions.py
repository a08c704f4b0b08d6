"""Dimensions: one named element of a key, with its type and, for time, the unit and zone of its partitions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from flowstone.errors import InvalidPartition, InvalidSet
from flowstone.partition.grids import Grid, Moment, aligned, grid_of
from flowstone.partition.keys import ElementType, KeyElement, KeyType, deserialize, normalized, shown
from flowstone.partition.steps import Unit, parse_unit
from flowstone.partition.zones import Zone, datetime_of, zone

DimensionType = Literal["date", "datetime", "string"]
_KINDS: dict[str, ElementType] = {"date": date, "datetime": datetime, "string": str}
_DEFAULT_UNITS: dict[str, Unit | None] = {"date": "day", "datetime": "hour", "string": None}


@dataclass(frozen=True)
class Window:
    """The time that a partition covers."""

    start: datetime
    """The first instant, UTC, included."""
    end: datetime
    """The instant at which the next partition begins, UTC, left out."""


@dataclass(frozen=True)
class Dimension:
    """One named element of a key."""

    name: str
    """As in the Asset's `partitionedBy`; unique in a set."""
    type: DimensionType
    unit: str | None = None
    """The length of one partition: hour (datetime only), day, week, month, quarter or year. Unset means day for
    a date and hour for a datetime; a string has none."""
    timezone: str = "UTC"
    """IANA name of the zone whose clock says when hours and days begin."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InvalidSet("A dimension needs a name, such as 'day'.")
        if self.type not in _KINDS:
            raise InvalidSet(f"The dimension {self.name} has no such type; write date, datetime or string.")
        if self.type == "string":
            self._refuse_time()
            return
        unit = parse_unit(_DEFAULT_UNITS[self.type] if self.unit is None else self.unit)
        if unit == "hour" and self.type == "date":
            raise InvalidSet(f"The dimension {self.name} is a date and has no hours; make it a datetime.")
        object.__setattr__(self, "unit", unit)
        zone(self.timezone)

    @property
    def kind(self) -> ElementType:
        """The Python type of the values."""
        return _KINDS[self.type]

    @property
    def zone(self) -> Zone:
        """The zone of `timezone`."""
        return zone(self.timezone)

    def parse(self, text: str) -> KeyElement:
        """Return the value of a canonical text.

        Raises:
            InvalidPartition: no canonical text of the type, off the grid of the unit, or skipped by the zone.
        """
        return self.check(deserialize(text, self.kind))

    def check(self, value: Any) -> KeyElement:
        """Return a typed value as it is kept (a datetime in UTC) if it is one of this dimension.

        Raises:
            InvalidPartition: another type, off the grid of the unit, or skipped by the zone.
        """
        element = normalized(value)
        if type(element) is not self.kind:
            raise InvalidPartition(f"{shown(value)} is no {self.type}, which dimension {self.name} holds.")
        if isinstance(element, date):
            aligned(self.grid(element, element), element, InvalidPartition)
        return element

    def window(self, value: Any) -> Window | None:
        """Return the time a value covers, None for a string.

        Raises:
            InvalidPartition: no value of this dimension, or its window leaves the years 1 to 9999.
        """
        element = normalized(value)
        if self.type == "string" or not isinstance(element, date):
            self.check(element)
            return None
        if type(element) is not self.kind:
            self.check(element)
        grid = self.grid(element, element)
        position = aligned(grid, element, InvalidPartition)
        return Window(datetime_of(grid.start(position)), datetime_of(grid.start(position + 1)))

    def grid(self, first: Moment, last: Moment) -> Grid:
        """Return the grid of the unit, good from first to last; not for strings."""
        return grid_of(parse_unit(self.unit), self.zone, date if self.type == "date" else datetime, first, last)

    def _refuse_time(self) -> None:
        if self.unit is not None or self.timezone != "UTC":
            raise InvalidSet(f"The dimension {self.name} is a string; leave out unit and timezone.")


def key_type(dimensions: tuple[Dimension, ...]) -> KeyType:
    """Return the type that `deserialize` needs for keys of these dimensions: one is plain, several are a tuple."""
    kinds = tuple(dimension.kind for dimension in dimensions)
    return kinds[0] if len(kinds) == 1 else kinds
