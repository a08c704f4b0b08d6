"""Sets: a lazy set behaves as the sorted list of its keys does, however it was described."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from hashlib import sha256
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import InvalidPartition, InvalidRange, InvalidSet
from flowstone.partition import (
    Dimension,
    KeyElement,
    PartitionSet,
    Span,
    Values,
    explicit,
    product,
    range_of,
    serialize,
    union,
    values_of,
)
from tests.unit.partition.partition_strategies import (
    CARRIER,
    DAY,
    HOUR,
    REGION,
    Twin,
    axis_values,
    dimension_lists,
    twins,
)

AXES = (REGION, CARRIER, DAY)


def example_set() -> PartitionSet:
    """Return 2 regions x 3 carriers x 4 days, without one carrier on one day and one carrier in one region."""
    return product(
        AXES,
        {
            "region": values_of(REGION, ["us", "eu"]),
            "carrier": values_of(CARRIER, ["UA", "DL", "AA"]),
            "day": range_of(DAY, "2013-01-01", through="2013-01-05").without(["2013-01-02"]),
        },
        [{"carrier": "UA", "day": "2013-01-03"}, {"region": "eu", "carrier": "DL"}],
    )


def test_product_without_combinations_holds_what_it_says() -> None:
    """24 combinations, less 2 (a carrier on a day, in both regions), less 4 (a carrier in one region)."""
    made = example_set()
    assert len(made) == 18
    assert made.text(0) == "eu|AA|2013-01-01"
    assert ("us", "UA", date(2013, 1, 3)) not in made
    assert ("eu", "UA", date(2013, 1, 3)) not in made
    assert ("us", "UA", date(2013, 1, 4)) in made
    assert ("eu", "DL", date(2013, 1, 1)) not in made
    assert ("us", "DL", date(2013, 1, 1)) in made
    assert ("us", "DL", date(2013, 1, 2)) not in made


@given(twins())
def test_set_is_its_sorted_list(twin: Twin) -> None:
    """Length, iteration, each index from both ends, membership and position equal those of the materialized list."""
    made, plain = twin.made, twin.plain
    assert len(made) == len(plain)
    assert list(made) == plain
    assert [made[place] for place in range(-len(plain), len(plain))] == plain + plain
    assert [made.index(key) for key in plain] == list(range(len(plain)))
    assert [made.text(place) for place in range(len(plain))] == [serialize(key) for key in plain]
    assert list(made.iter_text()) == [serialize(key) for key in plain]
    assert [made.parse(text) for text in made.iter_text()] == plain


def test_a_slice_whose_cut_part_equals_a_whole_one_has_the_hash_of_its_keys() -> None:
    """Without its first key, what is left below 01|a is what there is below 01|b, so the two are one run."""
    keys = [f"2013-01-01|{rest}" for rest in ("a|a", "a|b", "b|b")]
    keys += [f"2013-01-02|{rest}" for rest in ("a|a", "a|b", "b|a", "b|b")]
    dimensions = [DAY, REGION, Dimension("carrier", "string")]
    expected = explicit(dimensions, keys[1:]).hash
    made = explicit(dimensions, keys)
    assert made[1:].hash == expected
    assert made.subset([(1, 2), (2, 7)]).hash == expected


@given(dimension_lists.flatmap(lambda axes: st.tuples(twins(axes), twins(axes))))
def test_membership_is_that_of_the_list(pair: tuple[Twin, Twin]) -> None:
    """Keys of another set of the same dimensions are in this one exactly if they are in its list."""
    made, other = pair[0], pair[1]
    members = set(made.plain)
    assert [key in made.made for key in other.plain] == [key in members for key in other.plain]


_ENDS = st.none() | st.integers(-30, 30)


@given(twins(), _ENDS, _ENDS, st.none() | st.integers(-4, 4).filter(bool))
def test_slices_are_those_of_the_list(twin: Twin, low: int | None, high: int | None, step: int | None) -> None:
    """A slice is a set: same keys in the same order, same membership, and its hash is that of its keys listed."""
    made, plain = twin.made[low:high:step], twin.plain[low:high:step]
    assert isinstance(made, PartitionSet)
    assert list(made) == plain
    assert list(made.iter_text()) == [serialize(key) for key in plain]
    assert [key in made for key in twin.plain] == [key in plain for key in twin.plain]
    assert list(made[::-1]) == plain[::-1]
    if plain:
        assert made.hash == explicit(made.dimensions, [serialize(key) for key in plain]).hash


@given(twins(), st.data())
def test_iterating_from_a_position(twin: Twin, data: st.DataObject) -> None:
    """Keys and texts from any position are the rest of the list, ascending and descending."""
    start = data.draw(st.integers(0, len(twin.plain)))
    texts = [serialize(key) for key in twin.plain]
    descending = twin.made.ordered("Descending")
    assert list(twin.made.iterate_from(start)) == twin.plain[start:]
    assert list(twin.made.iter_text(start)) == texts[start:]
    assert list(descending.iterate_from(start)) == twin.plain[::-1][start:]
    assert list(descending.iter_text(start)) == texts[::-1][start:]


@given(twins())
def test_both_orders_are_one_set(twin: Twin) -> None:
    """Descending is the reverse of ascending, turns back into it, and has the same hash."""
    descending = twin.made.ordered("Descending")
    assert list(descending) == twin.plain[::-1]
    assert [descending.index(key) for key in twin.plain] == list(range(len(twin.plain)))[::-1]
    assert descending.hash == twin.made.hash
    assert list(descending.ordered("Ascending")) == twin.plain
    assert descending.ordered("Descending") == descending
    assert (descending == twin.made) == (len(twin.plain) == 1)


@given(twins())
def test_keys_that_are_listed_make_the_same_set(twin: Twin) -> None:
    """Product and keys, in any order and repeated, agree in order, equality and hash."""
    texts = [serialize(key) for key in twin.plain]
    listed = explicit(twin.made.dimensions, [*texts[::-1], *texts])
    assert list(listed) == twin.plain
    assert listed.hash == twin.made.hash
    assert listed == twin.made


@given(dimension_lists.flatmap(lambda axes: st.tuples(twins(axes), twins(axes))))
def test_hash_tells_sets_apart(pair: tuple[Twin, Twin]) -> None:
    """Two sets have one hash exactly if they have the same keys."""
    assert (pair[0].made.hash == pair[1].made.hash) == (pair[0].plain == pair[1].plain)
    assert (pair[0].made == pair[1].made) == (pair[0].plain == pair[1].plain)


@given(dimension_lists.flatmap(lambda axes: st.lists(twins(axes), min_size=1, max_size=4)))
def test_union_is_the_sorted_union(some: list[Twin]) -> None:
    """A union holds each key once, in order, whatever overlaps, and has the hash of the same keys listed."""
    expected = sorted({key for one in some for key in one.plain})
    made = union(*(one.made for one in some))
    assert list(made) == expected
    assert [made[place] for place in range(len(expected))] == expected
    assert made.hash == explicit(made.dimensions, [serialize(key) for key in expected]).hash


@given(twins(), st.data())
def test_union_of_disjoint_pieces_is_the_whole(twin: Twin, data: st.DataObject) -> None:
    """Cut anywhere, or dealt out in turn, the pieces give the set back."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(twin.plain)), max_size=3)))
    ends = [0, *cuts, len(twin.plain)]
    assert union(*(twin.made[low:high] for low, high in pairwise(ends))) == twin.made
    assert union(twin.made[::3], twin.made[1::3], twin.made[2::3]) == twin.made


@given(st.sampled_from([REGION, DAY, HOUR]).flatmap(axis_values))
def test_values_of_a_dimension_are_their_sorted_list(drawn: tuple[Values, list[KeyElement]]) -> None:
    """Values after exclusions behave as the plain list does."""
    values, plain = drawn
    assert list(values) == plain
    assert [values[place] for place in range(len(plain))] == plain
    assert [values.index(value) for value in plain] == list(range(len(plain)))
    assert list(values[1:]) == plain[1:]
    assert list(values[::-1]) == plain[::-1]


def test_order_is_by_code_point_and_by_time() -> None:
    """Strings compare as COLLATE "C" does in UTF-8: capitals first, then small letters, then what is not ASCII."""
    made = explicit([REGION, DAY], [f"{text}|2013-01-01" for text in ["é", "a", "B", "𐀀", "\uffff", "a%7C", "aa"]])
    assert [key[0] for key in made] == ["B", "a", "aa", "a|", "é", "\uffff", "𐀀"]  # type: ignore[index]  # tuples


def test_hash_is_stable() -> None:
    """The hash is what people approve: sha256 over dimensions, values and tree, written out by hand here."""
    content = """flowstone partition set 1
["region", "string", null, "UTC"]
2 values
eu
us
["day", "date", "day", "UTC"]
3 values
2013-01-01
2013-01-02
2013-01-03
0>0 1>1 2>0
0>1
0>2 1>3
"""
    keys = ["eu|2013-01-02", "us|2013-01-01", "us|2013-01-02", "us|2013-01-03"]
    assert explicit([REGION, DAY], keys).hash == sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        Dimension("date", "date"),
        Dimension("day", "date", timezone="Europe/Berlin"),
        Dimension("day", "string"),
    ],
)
def test_hash_knows_the_dimensions(other: Dimension) -> None:
    """The same text under another name, zone or type is another set."""
    assert explicit([other], ["2013-01-01"]).hash != explicit([DAY], ["2013-01-01"]).hash


def test_large_dimensions_are_hashed_by_their_description() -> None:
    """A set of 10^12 has a hash at once, and another end, step or hole gives another one."""
    axes = [Dimension("a", "datetime"), Dimension("b", "datetime")]

    def made(end: str, step: str = "hour", gone: tuple[str, ...] = ()) -> PartitionSet:
        hours = range_of(axes[0], "1900-01-01T00:00:00Z", through="2020-01-01T00:00:00Z")
        others = range_of(axes[1], "1900-01-01T00:00:00Z", through=end, step=step).without(gone)
        return product(axes, [hours, others])

    sets = [
        made("2020-01-01T00:00:00Z"),
        made("2020-01-01T01:00:00Z"),
        made("2020-01-01T00:00:00Z", "2 hours"),
        made("2020-01-01T00:00:00Z", gone=("1950-01-01T00:00:00Z",)),
    ]
    assert len(sets[0]) > 10**12
    assert len({one.hash for one in sets}) == 4
    assert made("2020-01-01T00:00:00Z").hash == sets[0].hash
    half = len(sets[0]) // 2
    assert union(sets[0][:half], sets[0][half:]) == sets[0]


def test_set_of_a_million_million_is_arithmetic() -> None:
    """Index, position and membership far inside agree with a division by hand."""
    axes = [Dimension("hour", "datetime"), Dimension("day", "date"), Dimension("name", "string")]
    names = [f"{place:04d}" for place in range(4000)]
    made = product(
        axes,
        [
            range_of(axes[0], "2000-01-01T00:00:00Z", before="2010-01-01T00:00:00Z"),
            range_of(axes[1], "2000-01-01", through="2009-12-31"),
            values_of(axes[2], names),
        ],
        [{"hour": "2000-01-01T00:00:00Z", "day": "2000-01-01", "name": "0001"}],
    )
    days = (date(2010, 1, 1) - date(2000, 1, 1)).days
    assert len(made) == days * 24 * days * 4000 - 1
    hour, rest = divmod(10**11 + 1, days * 4000)
    day, name = divmod(rest, 4000)
    key = made[10**11]
    assert key[2] == names[name]  # type: ignore[index]  # a tuple of a datetime, a date and a string
    assert key[1].toordinal() == date(2000, 1, 1).toordinal() + day  # type: ignore[index,union-attr]  # as above
    assert (key[0] - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() == hour * 3600  # type: ignore[index,operator]  # as above
    assert made.index(key) == 10**11
    assert next(made.iterate_from(10**11)) == key
    assert next(made.iter_text(10**11)) == serialize(key)
    assert list(islice(made.ordered("Descending").iterate_from(len(made) - 1 - 10**11), 1)) == [key]


def test_a_thousand_combinations_that_name_some_dimensions() -> None:
    """The count equals inclusion and exclusion by hand: 500 pairs (a, c), 500 pairs (b, c) on other values of c."""
    a, b, c = (Dimension(name, "string") for name in "abc")
    names = [f"{place:04d}" for place in range(1000)]
    values = [values_of(axis, names) for axis in (a, b, c)]
    combinations = [{"a": names[place], "c": names[place]} for place in range(100)]
    combinations += [{"b": names[place], "c": names[place + 500]} for place in range(100)]
    made = product((a, b, c), values, combinations)
    assert len(made) == 1000**3 - 100 * 1000 - 100 * 1000
    assert ("0005", "0007", "0005") not in made
    assert ("0006", "0007", "0005") in made
    assert ("0999", "0007", "0507") not in made
    assert made.index(made[123_456_789]) == 123_456_789


def test_overlapping_exclusions_count_once() -> None:
    """A key that two combinations exclude is gone once: 27 - 3 - 3 + 1."""
    a, b, c = (Dimension(name, "string") for name in "abc")
    values = [values_of(axis, ["x", "y", "z"]) for axis in (a, b, c)]
    made = product((a, b, c), values, [{"a": "x", "b": "x"}, {"b": "x", "c": "x"}])
    assert len(made) == 22


def test_exclusions_too_entangled_to_count_are_refused() -> None:
    """Counting what overlapping partial combinations leave has no fast way in general; the message says what to do."""
    axes = [Dimension(name, "string") for name in "abcd"]
    names = [f"{place:03d}" for place in range(333)]
    values = [values_of(axis, names) for axis in axes]
    last = {name: names[::-1][place] for place, name in enumerate(names)}
    combinations = [{axis.name: name, "d": last[name]} for axis in axes[:3] for name in names]
    with pytest.raises(InvalidSet, match="overlap in too many ways; name all dimensions"):
        product(axes, values, combinations)


def test_window_of_a_key_is_that_of_its_time_dimension() -> None:
    """A set with one time dimension knows each key's window; one without has none; one with two says where to ask."""
    window = example_set().window(("us", "UA", date(2013, 1, 4)))
    assert window is not None
    assert window.start == datetime(2013, 1, 4, tzinfo=UTC)
    assert window.end == datetime(2013, 1, 5, tzinfo=UTC)
    assert explicit([REGION], ["eu"]).window("eu") is None
    with pytest.raises(InvalidPartition, match="not in"):
        example_set().window(("us", "UA", date(2013, 1, 3)))
    with pytest.raises(InvalidSet, match=r"dimensions\[i\]"):
        explicit([DAY, HOUR], ["2013-01-01|2013-01-01T00:00:00Z"]).window(
            (date(2013, 1, 1), datetime(2013, 1, 1, tzinfo=UTC))
        )


def test_before_leaves_its_end_out() -> None:
    """`through` includes the last moment, `before` does not; neither needs to lie on the grid."""
    assert len(range_of(DAY, "2013-01-01", through="2013-01-05")) == 5
    assert len(range_of(DAY, "2013-01-01", before="2013-01-05")) == 4
    assert len(range_of(HOUR, "2013-01-01T00:00:00Z", before="2013-01-01T02:00:00Z")) == 2
    assert len(range_of(HOUR, "2013-01-01T00:00:00Z", before="2013-01-01T02:00:01Z")) == 3
    weeks = Dimension("week", "date", unit="week")
    assert list(range_of(weeks, "2013-01-07", before="2013-01-21")) == [date(2013, 1, 7), date(2013, 1, 14)]


def test_excluded_spans_take_out_what_lies_inside() -> None:
    """A span may begin and end anywhere; several may overlap; values that are not there change nothing."""
    year = range_of(DAY, "2013-01-01", through="2013-12-31")
    left = year.without(
        ["2013-12-31", "2014-06-01"],
        [
            Span("2013-02-01", through="2013-02-10"),
            Span("2013-02-05", before="2013-03-01"),
            Span("2012-01-01", through="2013-01-01"),
        ],
    )
    assert len(left) == 365 - 1 - 28 - 1
    assert left[0] == date(2013, 1, 2)
    assert date(2013, 3, 1) in left
    assert date(2013, 2, 28) not in left


@pytest.mark.parametrize(
    ("refused", "error", "remedy"),
    [
        (lambda: values_of(REGION, []), InvalidSet, "list at least one"),
        (lambda: values_of(REGION, "eu"), InvalidSet, r"write \['eu'\]"),
        (lambda: values_of(REGION, ["a|b"]), InvalidPartition, "percent-encoded"),
        (lambda: values_of(DAY, ["2013-1-1"]), InvalidPartition, "YYYY-MM-DD"),
        (lambda: values_of(HOUR, ["2013-01-01T00:30:00Z"]), InvalidPartition, "full hour.*T00:00:00Z and"),
        (lambda: range_of(REGION, "a", through="b"), InvalidRange, "list the values"),
        (lambda: range_of(DAY, "2013-01-01"), InvalidRange, "either through"),
        (
            lambda: range_of(DAY, "2013-01-01", through="2013-01-02", before="2013-01-03"),
            InvalidRange,
            "either through",
        ),
        (lambda: range_of(DAY, "2013-01-02", through="2013-01-01"), InvalidRange, "reversed"),
        (lambda: range_of(DAY, "2013-01-01", before="2013-01-01"), InvalidRange, "empty; end it later"),
        (lambda: range_of(DAY, "2013-01-01", through="2013-02-01", step="hour"), InvalidRange, "does not fit day"),
        (
            lambda: range_of(Dimension("w", "date", unit="week"), "2013-01-07", through="2014-01-01", step="month"),
            InvalidRange,
            "does not fit w",
        ),
        (
            lambda: range_of(DAY, "2013-01-01", through="2013-01-02").without(
                ranges=[Span("2013-01-01", through="2013-12-31")]
            ),
            InvalidSet,
            "exclude fewer",
        ),
        (
            lambda: range_of(DAY, "2013-01-01", through="2013-01-02").without(
                ranges=[Span("2013-01-02", through="2013-01-01")]
            ),
            InvalidRange,
            "reversed or empty",
        ),
        (lambda: explicit([DAY], []), InvalidSet, "list at least one"),
        (lambda: explicit([DAY], "2013-01-01"), InvalidSet, "Keys are a list"),
        (lambda: explicit([REGION, DAY], ["eu"]), InvalidPartition, "1 elements, its type has 2"),
        (lambda: explicit([], ["eu"]), InvalidSet, "at least one dimension"),
        (lambda: explicit([DAY, DAY], ["2013-01-01|2013-01-01"]), InvalidSet, "name each once"),
        (lambda: product([DAY], {}), InvalidSet, "give each"),
        (
            lambda: product([DAY], {"hour": range_of(HOUR, "2013-01-01T00:00:00Z", through="2013-01-01T00:00:00Z")}),
            InvalidSet,
            "give each",
        ),
        (
            lambda: product(
                [DAY], [range_of(Dimension("day", "date", timezone="Asia/Tokyo"), "2013-01-01", through="2013-01-01")]
            ),
            InvalidSet,
            "another dimension",
        ),
        (lambda: product([REGION], [values_of(REGION, ["eu"])], [{"region": "eu"}]), InvalidSet, "exclude fewer"),
        (
            lambda: product(
                [REGION, CARRIER],
                [values_of(REGION, ["eu"]), values_of(CARRIER, ["UA"])],
                [{"region": "eu", "carrier": "UA"}],
            ),
            InvalidSet,
            "exclude fewer",
        ),
        (lambda: product([REGION], [values_of(REGION, ["eu"])], [{}]), InvalidSet, "name one or more of region"),
        (
            lambda: product([REGION], [values_of(REGION, ["eu"])], [{"carrier": "UA"}]),
            InvalidSet,
            "name one or more of region",
        ),
        (lambda: product([DAY], [values_of(DAY, ["2013-01-01"])], [{"day": "x"}]), InvalidPartition, "YYYY-MM-DD"),
        (
            lambda: product([REGION, CARRIER], [values_of(REGION, ["x" * 400]), values_of(CARRIER, ["y" * 400])]),
            InvalidPartition,
            "801 bytes, 512",
        ),
        (union, InvalidSet, "at least one set"),
        (
            lambda: union(explicit([DAY], ["2013-01-01"]), explicit([REGION], ["eu"])),
            InvalidSet,
            "different dimensions",
        ),
        (lambda: example_set().ordered("ascending"), InvalidSet, "Ascending or Descending"),  # type: ignore[arg-type]  # the test is about what does not fit
        (lambda: Dimension("", "date"), InvalidSet, "needs a name"),
        (lambda: Dimension("x", "int"), InvalidSet, "date, datetime or string"),  # type: ignore[arg-type]  # see above
        (lambda: Dimension("x", "date", unit="hour"), InvalidSet, "make it a datetime"),
        (lambda: Dimension("x", "date", unit="minute"), InvalidRange, "no unit"),
        (lambda: Dimension("x", "string", unit="day"), InvalidSet, "leave out unit"),
        (lambda: Dimension("x", "string", timezone="Asia/Tokyo"), InvalidSet, "leave out unit"),
        (lambda: DAY.check(datetime(2013, 1, 1, tzinfo=UTC)), InvalidPartition, "no date, which dimension day"),
        (
            lambda: Dimension("m", "date", unit="month").parse("2013-01-02"),
            InvalidPartition,
            "2013-01-01 and 2013-02-01",
        ),
    ],
)
def test_refusal_of_a_set_says_what_to_write(
    refused: Callable[[], object], error: type[Exception], remedy: str
) -> None:
    """Whatever does not fit together is refused with a remedy."""
    with pytest.raises(error, match=remedy):
        refused()


def test_long_values_that_never_meet_are_accepted() -> None:
    """The limit of 512 bytes holds for keys of the set, not for combinations that are not in it."""
    made = explicit([REGION, CARRIER], ["x" * 400 + "|a", "b|" + "y" * 400])
    assert len(made) == 2


@pytest.mark.parametrize(
    "probe",
    [
        None,
        1,
        "eu",
        ("eu",),
        ("eu", "AA"),
        ("eu", "AA", "2013-01-01"),
        ("eu", "AA", datetime(2013, 1, 1, tzinfo=UTC)),
        ["eu", "AA", date(2013, 1, 1)],
        ("eu", "", date(2013, 1, 1)),
        ("eu", "\ud800", date(2013, 1, 1)),
    ],
)
def test_what_is_no_key_of_the_set_is_not_in_it(probe: object) -> None:
    """`in` never raises, and types are exact."""
    assert probe not in example_set()
    assert example_set().count(probe) == 0


def test_empty_slice_is_a_set_without_keys() -> None:
    """Views may be empty although no set is made empty."""
    empty = example_set()[5:5]
    assert len(empty) == 0
    assert list(empty) == list(empty.iter_text()) == list(empty[::-1]) == []
    assert ("us", "UA", date(2013, 1, 4)) not in empty
    assert empty == example_set()[9:9]
    assert empty.hash == example_set()[9:9].hash
    assert union(empty, example_set()) == example_set()
    with pytest.raises(IndexError):
        empty[0]


def test_example_of_the_documentation() -> None:
    """docs/partitions.md says 727 flights, and which one is at 100."""
    day = Dimension("day", "date", timezone="Europe/Berlin")
    year = range_of(day, "2013-01-01", through="2013-12-31").without(["2013-02-09"])
    flights = product(
        [REGION, day],
        {"region": values_of(REGION, ["us", "eu"]), "day": year},
        exclude_combinations=[{"region": "eu", "day": "2013-07-04"}],
    )
    assert len(flights) == 727
    assert flights[100] == ("eu", date(2013, 4, 12))
    assert ("eu", date(2013, 7, 4)) not in flights


def test_union_with_what_a_range_holds_builds_nothing() -> None:
    """Hours of 8,000 years stay a range when a few of them, or the range beside it, are added."""
    hours = product([HOUR], [range_of(HOUR, "1000-01-01T00:00:00Z", before="5000-01-01T00:00:00Z")])
    later = product([HOUR], [range_of(HOUR, "5000-01-01T00:00:00Z", before="9000-01-01T00:00:00Z")])
    some = explicit([HOUR], ["2013-01-01T00:00:00Z", "2014-01-01T00:00:00Z"])
    assert len(union(hours, some)) == len(hours)
    assert len(union(some, later, hours)) == len(hours) + len(later)
    assert union(hours, later).index(datetime(5000, 1, 1, tzinfo=UTC)) == len(hours)
