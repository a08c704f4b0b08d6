"""The texts that fields hold, each with its limits, its rule for the API server and its check in Python."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from flowstone.api.base import refusal
from flowstone.api.rules import Rule, validations

MAX_KEY = 512
"""Bytes of a serialized key, and so of each value in it, at most."""

_ID = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
_ID_REMEDY = "write 1 to 63 letters, digits, dots, dashes or underscores, the first one a letter or digit"

_DIMENSION = "^[A-Za-z][A-Za-z0-9_]{0,62}$"
_DIMENSION_REMEDY = "write 1 to 63 letters, digits or underscores, the first one a letter"

_LONG_MONTHS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTHS = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = f"([0-9]{{4}}-({_LONG_MONTHS}|{_SHORT_MONTHS}|{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
_CLOCK = "T([01][0-9]|2[0-3])(:[0-5][0-9]){2}Z"
_TIME = f"^{_DATE}({_CLOCK})?$"
# CEL has no date arithmetic and an error in timestamp() cannot be caught, so the calendar is in the pattern.
_TIME_REMEDY = "write a day that exists as 2013-02-28, or an instant as 2013-02-28T00:00:00Z"

_STEP = "^([1-9][0-9]{0,3} )?(hour|day|week|month|quarter|year)s?$"
_STEP_REMEDY = "write hour, day, week, month, quarter or year, or a number of them such as 2 weeks"


def _pattern_rule(pattern: str, remedy: str, also: str = "") -> dict[str, object]:
    shown = f"'\"' + self + '\" is not accepted: {remedy}'"
    return validations(Rule(f"self.matches('{pattern}'){also}", remedy, shown))


def _matches(pattern: str, remedy: str) -> AfterValidator:
    compiled = re.compile(pattern.removesuffix("$") + r"\Z")

    def check(text: str) -> str:
        if not compiled.match(text):
            raise refusal("", text, remedy)
        return text

    return AfterValidator(check)


def _no_year_zero(text: str) -> str:
    if text.startswith("0000"):
        raise refusal("", text, _TIME_REMEDY)
    return text


Identifier = Annotated[
    str,
    Field(max_length=63, json_schema_extra=_pattern_rule(_ID, _ID_REMEDY)),
    _matches(_ID, _ID_REMEDY),
]
"""An id of an asset or a tenant: it appears in rows, keys and Python."""

DimensionName = Annotated[
    str,
    Field(max_length=63, json_schema_extra=_pattern_rule(_DIMENSION, _DIMENSION_REMEDY)),
    _matches(_DIMENSION, _DIMENSION_REMEDY),
]
"""The name of a dimension."""

TimeText = Annotated[
    str,
    Field(
        max_length=32,  # longer than any good one, so that the rule's words are read and not a length
        json_schema_extra=_pattern_rule(_TIME, _TIME_REMEDY, " && !self.startsWith('0000')"),
    ),
    _matches(_TIME, _TIME_REMEDY),
    AfterValidator(_no_year_zero),
]
"""A bound of a range: the canonical text of a date or of an instant in UTC."""

StepText = Annotated[
    str,
    Field(max_length=16, json_schema_extra=_pattern_rule(_STEP, _STEP_REMEDY)),
    _matches(_STEP, _STEP_REMEDY),
]
"""A step of a range, the same text as in `generate_range`."""

KeyText = Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
"""One value of a dimension, or one serialized key; its type is checked when it is read."""

ResourceName = Annotated[str, Field(min_length=1, max_length=253, pattern="^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
"""The name of another resource, such as `daily-delays`."""
