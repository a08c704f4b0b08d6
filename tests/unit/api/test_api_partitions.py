"""What manifests say about partitions becomes the set that is meant, or a refusal that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.api.parse import parse_asset, parse_backfill
from flowstone.api.partitions import declared, described, dimensions, partition_set
from flowstone.errors import InvalidSpec
from tests.unit.api.manifests import asset, backfill

Json = dict[str, Any]
DAY: Json = {"name": "day", "type": "date"}
CARRIER: Json = {"name": "carrier", "type": "string"}
YEAR: Json = {"from": "2013-01-01", "through": "2013-12-31"}


def keys(*axes: Json, **spec: Any) -> list[str]:
    """The serialized keys of a Backfill over an Asset with these dimensions."""
    read = parse_asset({"metadata": {"name": "daily"}, "spec": asset(*axes)}).spec
    asked = parse_backfill({"metadata": {"name": "b"}, "spec": backfill(**spec)}).spec
    return list(partition_set(read, asked).iter_text())


def refused(*axes: Json, **spec: Any) -> InvalidSpec:
    """The refusal of such a Backfill."""
    with pytest.raises(InvalidSpec) as caught:
        keys(*axes, **spec)
    return caught.value


def in_year(year: int) -> list[str]:
    """Every day of a year, counted by the standard library."""
    first = date(year, 1, 1)
    return [(first + timedelta(days=n)).isoformat() for n in range((date(year + 1, 1, 1) - first).days)]


def test_a_year_of_days() -> None:
    """A range through the last day has every day of the year."""
    assert keys(DAY, partitions={"day": YEAR}) == in_year(2013)


def test_before_leaves_the_end_out() -> None:
    """`before` ends one day earlier than `through`."""
    assert keys(DAY, partitions={"day": {"from": "2013-01-01", "before": "2014-01-01"}}) == in_year(2013)


def test_product_in_the_order_of_the_asset() -> None:
    """Keys name the dimensions in the Asset's order, whatever the Backfill's; the set is the product, ascending."""
    asked = {"day": {"values": ["2013-01-02", "2013-01-01"]}, "carrier": {"values": ["UA", "DL"]}}
    expected = ["DL|2013-01-01", "DL|2013-01-02", "UA|2013-01-01", "UA|2013-01-02"]
    assert keys(CARRIER, DAY, partitions=asked) == expected


def test_dimension_left_out_takes_all_declared_values() -> None:
    """A dimension that the Backfill does not name takes what the Asset declares, as a list or a range."""
    carriers = CARRIER | {"values": ["UA", "DL"]}
    days = DAY | {"range": {"from": "2013-01-07", "through": "2013-01-21", "step": "week"}}
    expected = [f"{one}|2013-01-{day}" for one in ("DL", "UA") for day in ("07", "14", "21")]
    assert keys(carriers, days) == expected
    assert keys(carriers, days, partitions={"carrier": {"values": ["AA"]}}) == [
        "AA|2013-01-07",
        "AA|2013-01-14",
        "AA|2013-01-21",
    ]


def test_declared_values_minus_exclusions() -> None:
    """An entry with nothing but an exclusion means all declared values but those."""
    carriers = CARRIER | {"values": ["AA", "DL", "UA"]}
    assert keys(carriers, partitions={"carrier": {"exclude": {"values": ["DL"]}}}) == ["AA", "UA"]


def test_exclusions_of_a_range() -> None:
    """Excluded values and stretches are missing, and nothing else is."""
    exclude = {"values": ["2013-02-09"], "ranges": [{"from": "2013-05-01", "before": "2013-06-01"}]}
    expected = [day for day in in_year(2013) if day != "2013-02-09" and not day.startswith("2013-05")]
    assert keys(DAY, partitions={"day": YEAR | {"exclude": exclude}}) == expected


def test_excluded_combinations() -> None:
    """A combination leaves out one cell; one that names fewer dimensions leaves out a whole stripe."""
    asked = {"carrier": {"values": ["AA", "DL"]}, "day": {"values": ["2013-01-01", "2013-01-02"]}}
    cell = [{"carrier": "AA", "day": "2013-01-02"}]
    stripe = [{"carrier": "DL"}]
    all_but_cell = ["AA|2013-01-01", "DL|2013-01-01", "DL|2013-01-02"]
    assert keys(CARRIER, DAY, partitions=asked, excludeCombinations=cell) == all_but_cell
    assert keys(CARRIER, DAY, partitions=asked, excludeCombinations=cell + stripe) == ["AA|2013-01-01"]


def test_keys_mean_the_same_as_partitions() -> None:
    """The same partitions by `keys` and by `partitions` are one set, down to its hash."""
    read = parse_asset({"metadata": {"name": "daily"}, "spec": asset(CARRIER, DAY)}).spec
    by_product = backfill(partitions={"carrier": {"values": ["AA", "DL"]}, "day": {"values": ["2013-01-01"]}})
    by_keys = backfill(keys=["DL|2013-01-01", "AA|2013-01-01"])
    sets = [partition_set(read, parse_backfill({"spec": spec}).spec) for spec in (by_product, by_keys)]
    assert sets[0].hash == sets[1].hash
    assert list(sets[0]) == [("AA", date(2013, 1, 1)), ("DL", date(2013, 1, 1))]


def test_hours_of_the_autumn_change() -> None:
    """The last Sunday of October has 25 hours in Berlin, told apart by their UTC instants."""
    hours = {"name": "hour", "type": "datetime", "timezone": "Europe/Berlin"}
    asked = {"hour": {"from": "2013-10-26T22:00:00Z", "before": "2013-10-27T23:00:00Z"}}
    expected = [f"2013-10-26T{hour}:00:00Z" for hour in (22, 23)]
    expected += [f"2013-10-27T{hour:02}:00:00Z" for hour in range(23)]
    assert keys(hours, partitions=asked) == expected


def test_strings_are_written_as_in_keys() -> None:
    """A value of strings is its canonical text, percent-encoded where a key needs it."""
    assert keys(CARRIER, partitions={"carrier": {"values": ["a%7Cb"]}}) == ["a%7Cb"]


def test_huge_set_costs_nothing() -> None:
    """A product of more than 10^12 keys is made and measured at once."""
    read = parse_asset(
        {"metadata": {"name": "daily"}, "spec": asset(*({"name": f"d{n}", "type": "date"} for n in range(4)))}
    )
    asked = parse_backfill(
        {"spec": backfill(partitions={f"d{n}": {"from": "2001-01-01", "before": "2004-01-01"} for n in range(4)})}
    )
    assert len(partition_set(read.spec, asked.spec)) == 1095**4


Refusal = tuple[tuple[Json, ...], Json, str, Any, str]

REFUSALS: Mapping[str, Refusal] = {
    "unknown dimension": (
        (CARRIER, DAY),
        {"partitions": {"dya": YEAR}},
        "spec.partitions.dya",
        "dya",
        "it has carrier, day",
    ),
    "nothing declared": (
        (CARRIER, DAY),
        {"partitions": {"day": YEAR}},
        "spec.partitions.carrier",
        None,
        "write carrier with values or from here",
    ),
    "no such day": (
        (DAY,),
        {"partitions": {"day": {"values": ["2013-02-28", "2013-02-30"]}}},
        "spec.partitions.day.values.1",
        "2013-02-30",
        "2013-02-30",
    ),
    "key of another type": ((DAY,), {"keys": ["2013-01-01", "UA"]}, "spec.keys.1", "UA", "date"),
    "arity": ((CARRIER, DAY), {"keys": ["UA"]}, "spec.keys.0", "UA", "2"),
    "instant for a date": (
        (DAY,),
        {"partitions": {"day": {"from": "2013-01-01T00:00:00Z", "through": "2013-01-02T00:00:00Z"}}},
        "spec.partitions.day.from",
        "2013-01-01T00:00:00Z",
        "date",
    ),
    "range of strings": (
        (CARRIER,),
        {"partitions": {"carrier": YEAR}},
        "spec.partitions.carrier.from",
        "2013-01-01",
        "list the values",
    ),
    "off the grid": (
        (DAY | {"unit": "week"},),
        {"partitions": {"day": {"from": "2013-01-01", "through": "2013-12-31"}}},
        "spec.partitions.day.from",
        "2013-01-01",
        "2012-12-31 and 2013-01-07",
    ),
    "step and start": (
        (DAY,),
        {"partitions": {"day": YEAR | {"step": "week"}}},
        "spec.partitions.day.step",
        "week",
        "2012-12-31 and 2013-01-07",
    ),
    "step too fine": (
        (DAY | {"unit": "month"},),
        {"partitions": {"day": YEAR | {"step": "day"}}},
        "spec.partitions.day.step",
        "day",
        "write month or several of them",
    ),
    "excluded value": (
        (DAY,),
        {"partitions": {"day": YEAR | {"exclude": {"values": ["2013-04-31"]}}}},
        "spec.partitions.day.exclude.values.0",
        "2013-04-31",
        "2013-04-31",
    ),
    "excluded instants": (
        (DAY,),
        {
            "partitions": {
                "day": YEAR
                | {"exclude": {"ranges": [{"from": "2013-01-01T00:00:00Z", "before": "2013-01-02T00:00:00Z"}]}}
            }
        },
        "spec.partitions.day.exclude.ranges.0.from",
        "2013-01-01T00:00:00Z",
        "date",
    ),
    "nothing left": (
        (DAY,),
        {"partitions": {"day": YEAR | {"exclude": {"ranges": [YEAR]}}}},
        "spec.partitions.day.exclude",
        "0 values, 1 ranges",
        "exclude fewer",
    ),
    "no combination left": (
        (CARRIER,),
        {"partitions": {"carrier": {"values": ["UA"]}}, "excludeCombinations": [{"carrier": "UA"}]},
        "spec.excludeCombinations",
        "1 combinations",
        "exclude fewer",
    ),
    "combination of an unknown dimension": (
        (CARRIER,),
        {"partitions": {"carrier": {"values": ["UA"]}}, "excludeCombinations": [{"airline": "UA"}]},
        "spec.excludeCombinations.0.airline",
        "airline",
        "it has carrier",
    ),
    "combination of another type": (
        (DAY,),
        {"partitions": {"day": YEAR}, "excludeCombinations": [{"day": "2013-01-01"}, {"day": "UA"}]},
        "spec.excludeCombinations.1.day",
        "UA",
        "date",
    ),
    "keys too long": (
        (CARRIER, {"name": "plane", "type": "string"}),
        {"partitions": {"carrier": {"values": ["a" * 300]}, "plane": {"values": ["b" * 300]}}},
        "spec.partitions",
        "carrier, plane",
        "use shorter values",
    ),
    "day that the zone skipped": (
        (DAY | {"timezone": "Pacific/Apia"},),
        {"keys": ["2011-12-29", "2011-12-30"]},
        "spec.keys.1",
        "2011-12-30",
        "2011-12-29 and 2011-12-31",
    ),
    "unknown zone": (
        (DAY | {"timezone": "Europe/Berln"},),
        {"partitions": {"day": YEAR}},
        "spec.asset",
        "daily",
        "Europe/Berlin",
    ),
    "declared value": (
        (DAY | {"values": ["2013-02-30"]},),
        {},
        "spec.asset",
        "daily",
        "spec.partitionedBy.0.values.0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_names_field_value_and_remedy(name: str) -> None:
    """What the schema cannot know is refused by field, value and remedy."""
    axes, spec, field, value, remedy = REFUSALS[name]
    error = refused(*axes, **spec)
    assert (error.field, error.value) == (field, value)
    assert remedy in error.remedy
    assert field in str(error)


def test_dimensions_have_their_defaults() -> None:
    """Unit and zone are filled in: day for a date, hour for a datetime, UTC, and no unit for strings."""
    read = parse_asset({"metadata": {"name": "a"}, "spec": asset(DAY, {"name": "hour", "type": "datetime"}, CARRIER)})
    assert [(one.unit, one.timezone) for one in dimensions(read.spec)] == [
        ("day", "UTC"),
        ("hour", "UTC"),
        (None, "UTC"),
    ]
    assert described(read.spec)[0] == {"name": "day", "type": "date", "unit": "day", "timezone": "UTC"}


def test_declared_values_are_checked_by_themselves() -> None:
    """An Asset's own fault is found without a Backfill, and named by its own field."""
    good = asset(CARRIER | {"values": ["UA"]}, DAY)
    read = parse_asset({"metadata": {"name": "a"}, "spec": good}).spec
    assert {name: list(values) for name, values in declared(read).items()} == {"carrier": ["UA"]}
    bad = asset(CARRIER | {"values": ["UA", "a|b"]}, DAY)
    with pytest.raises(InvalidSpec) as caught:
        declared(parse_asset({"metadata": {"name": "a"}, "spec": bad}).spec)
    assert (caught.value.field, caught.value.value) == ("spec.partitionedBy.0.values.1", "a|b")


DATES = st.dates(date(1900, 1, 1), date(2100, 12, 31))


@given(DATES, st.integers(0, 400), st.sets(st.integers(0, 400)), st.integers(0, 400), st.integers(0, 60))
def test_range_minus_exclusions_is_set_arithmetic(
    start: date, length: int, single: set[int], gap: int, gap_length: int
) -> None:
    """A range with excluded days and an excluded stretch has the days that plain sets say."""

    def day(number: int) -> str:
        return (start + timedelta(days=number)).isoformat()

    out = single | set(range(gap, gap + gap_length + 1))
    expected = [day(number) for number in range(length + 1) if number not in out]
    exclude: Json = {"ranges": [{"from": day(gap), "through": day(gap + gap_length)}]}
    if single:
        exclude["values"] = [day(number) for number in single]
    entry = {"from": day(0), "through": day(length), "exclude": exclude}
    if expected:
        assert keys(DAY, partitions={"day": entry}) == expected
    else:
        assert refused(DAY, partitions={"day": entry}).field == "spec.partitions.day.exclude"
