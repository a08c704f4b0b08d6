"""The bounds of ranges are texts of the calendar; the pattern that says so is the API server's rule too."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flowstone.api import text
from flowstone.api.text import TimeText

TIME = TypeAdapter(TimeText)
SCHEMA = TIME.json_schema()


def accepts(value: str) -> bool:
    """Whether the model takes it."""
    try:
        TIME.validate_python(value)
    except ValidationError:
        return False
    return True


def is_date(value: str) -> bool:
    """Whether it is the one spelling of a date, as the standard library sees it."""
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


@pytest.mark.parametrize("year", [0, 1, 4, 100, 400, 1600, 1700, 1899, 1900, 2000, 2012, 2013, 2100, 2400, 9996, 9999])
def test_every_day_of_a_year_and_no_other(year: int) -> None:
    """Of all months 00..13 and days 00..32, exactly the days of the calendar are accepted."""
    candidates = [f"{year:04}-{month:02}-{day:02}" for month in range(14) for day in range(33)]
    assert [one for one in candidates if accepts(one)] == [one for one in candidates if is_date(one)]


@given(st.integers(1, 9999))
def test_leap_days_are_those_of_the_calendar(year: int) -> None:
    """29 February is accepted in leap years alone."""
    leap = f"{year:04}-02-29"
    assert accepts(leap) == is_date(leap)


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC)))
def test_every_instant_in_whole_seconds_is_accepted(moment: datetime) -> None:
    """The canonical text of every instant is accepted."""
    assert accepts(moment.replace(microsecond=0, tzinfo=None).isoformat() + "Z")


@given(st.from_regex(re.compile(r"[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,2}[\s\S]{0,2}"), fullmatch=True))
def test_nothing_but_canonical_dates(candidate: str) -> None:
    """Other spellings of dates are refused, also with a line break at the end."""
    assert accepts(candidate) == is_date(candidate)


def test_model_and_api_server_use_the_same_pattern() -> None:
    """The CEL rule of the schema holds the very pattern that the model checks."""
    (rule,) = SCHEMA["x-kubernetes-validations"]
    assert rule["rule"] == f"self.matches('{text._TIME}') && !self.startsWith('0000')"
