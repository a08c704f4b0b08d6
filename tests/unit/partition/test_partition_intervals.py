"""Intervals: any part of a set as text for people, and back."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.errors import InvalidPartition, InvalidSet, PartitionError
from flowstone.partition import (
    Dimension,
    PartitionSet,
    compress,
    expand,
    explicit,
    product,
    range_of,
    serialize,
    values_of,
)
from tests.unit.partition.partition_strategies import Twin, texts, twins

DAY = Dimension("day", "date")
REGION = Dimension("region", "string")


def year() -> PartitionSet:
    """Return the days of 2013."""
    return product([DAY], [range_of(DAY, "2013-01-01", through="2013-12-31")])


def test_days_are_written_as_people_write_them() -> None:
    """The issue's example: a quarter, less nothing, and a day after it."""
    text = "2013-01-01..2013-03-31, 2013-04-02 (91)"
    assert compress(year(), [*range(90), 91]) == text
    assert list(expand(year(), text)) == [year()[place] for place in [*range(90), 91]]
    assert list(expand([DAY], text)) == [year()[place] for place in [*range(90), 91]]


def test_keys_and_positions_say_the_same() -> None:
    """A part may be named by typed keys or by positions, in any order, repeated or not."""
    keys = [date(2013, 1, 2), date(2013, 1, 1), date(2013, 1, 2)]
    assert compress(year(), keys) == compress(year(), [1, 0, 0]) == "2013-01-01..2013-01-02 (2)"


def test_positions_of_a_descending_set_count_from_its_end() -> None:
    """The text is ascending all the same."""
    assert compress(year().ordered("Descending"), [0, 1, 5]) == "2013-12-26, 2013-12-30..2013-12-31 (3)"


def test_nothing_is_written_as_a_count() -> None:
    """An empty part has a text, which is read back."""
    assert compress(year(), []) == "(0)"
    assert len(expand(year(), "(0)")) == 0


@given(twins(), st.data())
def test_any_part_is_read_back(twin: Twin, data: st.DataObject) -> None:
    """expand is the inverse of compress, for both orders of the set."""
    chosen = data.draw(st.sets(st.integers(0, len(twin.plain) - 1)))
    keys = [twin.plain[place] for place in sorted(chosen)]
    text = compress(twin.made, chosen)
    assert list(expand(twin.made, text)) == keys
    assert list(expand(twin.made.ordered("Descending"), text)) == keys
    assert compress(twin.made, keys) == text
    assert text.endswith(f"({len(keys)})")


@given(
    st.lists(
        texts | st.sampled_from(["a..b", "..", ".", "a.", ".a", "a, b", "(1)", '"', "\\", "…", " "]),
        min_size=1,
        max_size=5,
    )
)
def test_awkward_strings_are_read_back(names: list[str]) -> None:
    """Keys that hold dots, commas, quotes, brackets or white space are quoted so that nothing is taken for another."""
    made = explicit([REGION], [serialize(name) for name in names])
    for place in range(len(made)):
        text = compress(made, [place])
        assert list(expand(made, text)) == [made[place]]
        assert list(expand([REGION], text)) == [made[place]]
    assert expand(made, compress(made, range(len(made)))) == made


@given(twins(), st.integers(0, 200), st.data())
def test_text_is_cut_to_fit(twin: Twin, limit: int, data: st.DataObject) -> None:
    """A text stays within its limit, always says the whole count, and a cut one is refused when read back."""
    chosen = data.draw(st.sets(st.integers(0, len(twin.plain) - 1)))
    whole, cut = compress(twin.made, chosen), compress(twin.made, chosen, limit=limit)
    assert len(cut) <= max(limit, len(f"… ({len(chosen)})"))
    assert cut.endswith(f"({len(chosen)})")
    assert (cut == whole) == (len(whole) <= max(limit, len("(0)") if not chosen else 0))
    if cut != whole:
        with pytest.raises(InvalidSet, match="cut"):
            expand(twin.made, cut)


def test_tuples_of_dimensions_alone_may_differ_in_one_date() -> None:
    """Without a set, a..b is every partition between two keys that differ in one date or datetime."""
    made = expand([REGION, DAY], "eu|2013-01-01..eu|2013-01-03, us|2013-01-01")
    assert [serialize(key) for key in made] == ["eu|2013-01-01", "eu|2013-01-02", "eu|2013-01-03", "us|2013-01-01"]
    with pytest.raises(InvalidSet, match="give the set"):
        expand([REGION, DAY], "eu|2013-01-01..us|2013-01-03")
    with pytest.raises(InvalidSet, match="give the set"):
        expand([REGION], "eu..us")
    both = product([REGION, DAY], [values_of(REGION, ["eu", "us"]), values_of(DAY, ["2013-01-01", "2013-01-03"])])
    assert len(expand(both, "eu|2013-01-03..us|2013-01-01")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "2013-01-01,",
        "2013-01-01,,2013-01-02",
        "2013-01-01..",
        "..2013-01-01",
        "2013-01-01 2013-01-02",
        "(x)",
        "(1) 2013-01-01",
        "2013-01-01 (1) (1)",
        '"2013-01-01',
        "2013-01-01, … (4)",
        "(0), 2013-01-01",
        ", (0)",
    ],
)
def test_what_is_no_list_of_intervals_is_refused(text: str) -> None:
    """The message shows the form."""
    with pytest.raises(InvalidSet, match=r"write a\.\.b, c"):
        expand(year(), text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("2013-01-05..2013-01-01", "the earlier first"),
        ("2014-01-01", "name keys of it"),
        ("2013-01-01..2013-01-03 (2)", "says 2 keys.*hold 3"),
        ("(1)", "says 1 keys.*hold 0"),
        ('"\\x"', "JSON"),
    ],
)
def test_intervals_that_do_not_fit_the_set_are_refused(text: str, remedy: str) -> None:
    """Reversed, outside, or counted wrongly: each is refused with what is wrong."""
    with pytest.raises(InvalidSet, match=remedy):
        expand(year(), text)


@pytest.mark.parametrize("chosen", [[365], [-1], [True], ["2013-01-01"], [date(2014, 1, 1)], [None]])
def test_what_is_not_in_the_set_is_refused(chosen: list[object]) -> None:
    """Positions and keys outside the set are errors, never guessed."""
    with pytest.raises(InvalidSet):
        compress(year(), chosen)  # type: ignore[arg-type]  # the test is about what does not fit


@given(st.text(st.characters() | st.sampled_from('0123456789-.,"()… \\|'), max_size=40))
def test_fuzzed_intervals_raise_only_the_documented_error(text: str) -> None:
    """expand reads a text or raises a PartitionError."""
    for where in (year(), [DAY]):
        try:
            expand(where, text)
        except PartitionError:
            continue


def test_key_of_another_type_is_refused() -> None:
    """Each key of a text is held to the rules of keys."""
    with pytest.raises(InvalidPartition, match="YYYY-MM-DD"):
        expand(year(), "eu")
