"""Units of time and the steps that are made of them: `day`, `2 weeks`, `6 hours`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flowstone.errors import InvalidRange
from flowstone.partition.keys import shown

Unit = Literal["hour", "day", "week", "month", "quarter", "year"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""From the finest to the coarsest."""

FINER: dict[Unit, tuple[Unit, ...]] = {
    "hour": ("hour",),
    "day": ("hour", "day"),
    "week": ("hour", "day", "week"),
    "month": ("hour", "day", "month"),
    "quarter": ("hour", "day", "month", "quarter"),
    "year": ("hour", "day", "month", "quarter", "year"),
}
"""The units whose grid holds every point of the unit's own: a month begins with a day, but not with a week."""

_STEP = re.compile(r"(?:([1-9][0-9]{0,5}) )?([a-z]+?)s?")


@dataclass(frozen=True)
class Step:
    """Every n-th point of a unit's grid, counted from the start of the range that uses it."""

    count: int
    unit: Unit

    def __str__(self) -> str:
        """Return the canonical text, `day` or `2 weeks`."""
        return self.unit if self.count == 1 else f"{self.count} {self.unit}s"


def parse_step(text: Any) -> Step:
    """Return the step of a text: a unit, or a number from 1 to 999,999 and a unit, singular or plural.

    Raises:
        InvalidRange: the text is no step.
    """
    if isinstance(text, Step):
        return text
    match = _STEP.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in UNITS:
        raise InvalidRange(
            f"{shown(text)} is no step; write {', '.join(UNITS[:-1])} or year, or several such as '2 weeks'."
        )
    return Step(int(match[1] or 1), match[2])


def parse_unit(text: Any) -> Unit:
    """Return the unit of a text such as `day`.

    Raises:
        InvalidRange: the text is no unit.
    """
    if not isinstance(text, str) or text not in UNITS:
        raise InvalidRange(f"{shown(text)} is no unit; write {', '.join(UNITS[:-1])} or year.")
    return text
