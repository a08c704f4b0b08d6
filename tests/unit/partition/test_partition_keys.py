"""Keys and their text: the seed's cases, the four invariants of `keys`, and every refusal."""

from __future__ import annotations

import enum
import string
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flowstone import partition
from flowstone.errors import FlowStoneError, InvalidPartition, PartitionError
from flowstone.partition import Key, deserialize, serialize
from flowstone.partition.keys import KeyType
from tests.unit.partition.partition_strategies import key_types, texts, typed_keys, typed_pairs

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("key", "type_", "text"),
    [
        (date(2025, 1, 15), date, "2025-01-15"),
        (datetime(2025, 1, 15, 14, 30, tzinfo=UTC), datetime, "2025-01-15T14:30:00Z"),
        (("tenant_1", "region_a", date(2025, 1, 15)), (str, str, date), "tenant_1|region_a|2025-01-15"),
        (("a", "b", date(2025, 1, 15)), (str, str, date), "a|b|2025-01-15"),
        ("a|b", str, "a%7Cb"),
        ("100%", str, "100%25"),
        ("a\nb\x7f\x85", str, "a%0Ab%7F%C2%85"),
        ("é 日本 𐀀", str, "é 日本 𐀀"),
        (("a|", "b"), (str, str), "a%7C|b"),
        (("a",), (str,), "a"),
        (date(1, 1, 1), date, "0001-01-01"),
        (date(9999, 12, 31), date, "9999-12-31"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime, "9999-12-31T23:59:59Z"),
    ],
)
def test_text_of_a_key_is_this_and_is_read_back(key: Key, type_: KeyType, text: str) -> None:
    """Each key has exactly the text of the design, and the text gives the key back in the same types."""
    assert serialize(key) == text
    assert deserialize(text, type_) == key
    assert type(deserialize(text, type_)) is type(key)


def test_datetime_of_any_zone_becomes_its_utc_instant() -> None:
    """A datetime with an offset has the text of its instant in UTC."""
    assert serialize(datetime(2025, 7, 1, 2, 0, tzinfo=BERLIN)) == "2025-07-01T00:00:00Z"
    assert (
        serialize(datetime(2025, 7, 1, 5, 45, tzinfo=timezone(timedelta(hours=5, minutes=45))))
        == "2025-07-01T00:00:00Z"
    )


def test_both_passes_of_an_hour_shown_twice_are_different_keys() -> None:
    """On 26 October 2025 Berlin's clock showed 02:30 twice; the two are an hour apart."""
    first = datetime(2025, 10, 26, 2, 30, tzinfo=BERLIN)
    assert serialize(first) == "2025-10-26T00:30:00Z"
    assert serialize(first.replace(fold=1)) == "2025-10-26T01:30:00Z"


@given(typed_keys())
@example(((str, str), ("\n\u0301", "\u0301")))
def test_round_trip(drawn: tuple[KeyType, Key]) -> None:
    """deserialize is the inverse of serialize, for every type and nesting that is allowed."""
    type_, key = drawn
    back = deserialize(serialize(key), type_)
    assert back == key
    assert type(back) is type(key)


@given(typed_pairs())
def test_different_keys_of_one_type_have_different_texts(drawn: tuple[Key, Key]) -> None:
    """serialize is injective for a given type."""
    first, second = drawn
    assert (serialize(first) == serialize(second)) == (first == second)


_TRICKY = st.lists(st.sampled_from(["%", "|", "7C", "25", "a", "%7C", "%25", "\n", "0A"]), min_size=1, max_size=4)


@given(_TRICKY.map("".join), _TRICKY.map("".join), _TRICKY.map("".join), _TRICKY.map("".join))
def test_no_way_to_forge_a_separator(a: str, b: str, c: str, d: str) -> None:
    """Two pairs of strings made of what encoding itself uses never share a text."""
    assert (serialize((a, b)) == serialize((c, d))) == ((a, b) == (c, d))


@given(key_types, st.text(st.characters() | st.sampled_from("%|0123456789-:TZACF")))
@example(date, "2025-01-15\n")
@example(datetime, "2025-01-15T01+01:00Z")
@example(datetime, "2025-01-15T24:00:00Z")
@example(str, "%ED%A0%80")
@example(str, "\ud800")
@example(date, "２０２５-01-15")
def test_fuzzed_text_is_read_or_refused_as_documented(type_: KeyType, text: str) -> None:
    """deserialize raises InvalidPartition and nothing else; what it accepts is the one canonical text."""
    try:
        key = deserialize(text, type_)
    except InvalidPartition:
        return
    assert serialize(key) == text


@given(typed_keys(), st.data())
def test_damaged_text_is_refused_or_another_canonical_text(drawn: tuple[KeyType, Key], data: st.DataObject) -> None:
    """One character changed in a good text never gives the same key again, and never another error."""
    type_, key = drawn
    text = serialize(key)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from([*string.printable, "", "\u0301"])) + text[place + 1 :]
    try:
        back = deserialize(damaged, type_)
    except InvalidPartition:
        return
    assert (back == key) == (damaged == text)


@given(st.none() | st.integers() | st.binary() | st.lists(st.text()) | st.dates(), key_types)
def test_what_is_no_text_is_refused(value: object, type_: KeyType) -> None:
    """deserialize refuses everything that is not a str with the documented error."""
    with pytest.raises(InvalidPartition, match="is a str"):
        deserialize(value, type_)  # type: ignore[call-overload]  # the test is about what does not fit


@pytest.mark.parametrize(
    "text",
    ["%41", "%7c", "%", "%2", "%C2", "%80", "a%7C%", "%ED%A0%80", "a|b", "a\n", "e\u0301", "", "%C3%A9", "%20"],
)
def test_only_canonical_strings_are_read(text: str) -> None:
    """A string that serialize would have written otherwise is refused."""
    with pytest.raises(InvalidPartition):
        deserialize(text, str)


@pytest.mark.parametrize(
    "text",
    ["2025-1-5", " 2025-01-15", "2025-01-15 ", "20250115", "2025-W03-3", "2025-02-30", "0000-01-01", "10000-01-01", ""],
)
def test_only_canonical_dates_are_read(text: str) -> None:
    """A date has one spelling."""
    with pytest.raises(InvalidPartition, match="YYYY-MM-DD"):
        deserialize(text, date)


@pytest.mark.parametrize(
    "text",
    [
        "2025-01-15T14:30:00+00:00",
        "2025-01-15T14:30:00",
        "2025-01-15 14:30:00Z",
        "2025-01-15T14:30Z",
        "2025-01-15T14:30:00z",
        "2025-01-15T14:30:00.0Z",
        "2025-01-15T14:30:00.000000Z",
        "2025-01-15T24:00:00Z",
        "2025-01-15T23:59:60Z",
        "2025-01-15",
        "",
    ],
)
def test_only_canonical_datetimes_are_read(text: str) -> None:
    """A datetime has one spelling, in UTC, in whole seconds."""
    with pytest.raises(InvalidPartition, match="YYYY-MM-DDTHH:MM:SSZ"):
        deserialize(text, datetime)


class _Text(str):
    __slots__ = ()


class _Word(enum.StrEnum):
    A = "a"


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        (datetime(2025, 1, 15), r"replace\(tzinfo=UTC\)"),
        (datetime(2025, 1, 15, microsecond=1, tzinfo=UTC), r"replace\(microsecond=0\)"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "years 1 to 9999"),
        (datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-1))), "years 1 to 9999"),
        (datetime(2025, 3, 30, 2, 30, tzinfo=BERLIN), "never showed 2025-03-30T02:30:00.*2025-03-30T01:30:00Z"),
        ("", "empty string"),
        ("e\u0301", "NFC"),
        ("\ud800", "surrogate"),
        (("a", "\udfff"), "surrogate"),
        ((), "no elements"),
        (("a", ("b", "c")), "flat tuple"),
        (("a", ["b"]), "flat tuple"),
        (["a", "b"], "plain tuple"),
        (None, r"str\(value\)"),
        (1, r"str\(value\)"),
        (True, r"str\(value\)"),
        (("a", None), r"str\(value\)"),
        (b"a", r"str\(value\)"),
        (_Text("a"), "subclass _Text"),
        (_Word.A, "subclass _Word"),
        ("x" * 513, "512"),
        ("é" * 257, "514 bytes, 512"),
        ("|" * 171, "513 bytes, 512"),
        (("a" * 256, "b" * 256), "513 bytes, 512"),
    ],
)
def test_refusal_of_a_key_says_what_to_write(key: object, remedy: str) -> None:
    """Each value that is no key is refused with a remedy, by an error that is also a ValueError."""
    with pytest.raises(InvalidPartition, match=remedy) as refusal:
        serialize(key)  # type: ignore[arg-type]  # the test is about what does not fit
    assert isinstance(refusal.value, PartitionError)
    assert isinstance(refusal.value, FlowStoneError)
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("key", ["x" * 512, "é" * 256, "|" * 170, ("a" * 256, "b" * 255)])
def test_key_of_512_bytes_is_accepted(key: Key) -> None:
    """The limit itself is allowed."""
    type_: KeyType = (str, str) if isinstance(key, tuple) else str
    assert len(serialize(key).encode()) in (510, 512)
    assert deserialize(serialize(key), type_) == key


@pytest.mark.parametrize(
    ("text", "type_"), [("a|b", (str,)), ("a", (str, str)), ("a|b|c", (str, str)), ("a||b", (str, str))]
)
def test_wrong_number_of_elements_is_refused(text: str, type_: tuple[type[str], ...]) -> None:
    """The message counts both sides and says how to write a | inside a string."""
    with pytest.raises(InvalidPartition, match="%7C"):
        deserialize(text, type_)


@pytest.mark.parametrize(
    "type_", [int, bool, None, "date", (), (str, int), (str, (str,)), [str], tuple[str, str], object, _Text]
)
def test_what_is_no_type_of_a_key_is_refused(type_: object) -> None:
    """The type is date, datetime, str, or a flat tuple of those."""
    with pytest.raises(InvalidPartition, match="type"):
        deserialize("a", type_)  # type: ignore[call-overload]  # the test is about what does not fit


def test_text_over_the_limit_is_not_parsed() -> None:
    """deserialize refuses what serialize would not have written, and shows only its beginning."""
    with pytest.raises(InvalidPartition) as refusal:
        deserialize("x" * 1_000_000, str)
    assert len(str(refusal.value)) < 300


@given(texts)
def test_text_holds_no_control_character(text: str) -> None:
    """A text fits on one line of a file and into any manifest."""
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in serialize(text))


def test_partition_is_importable_from_the_package() -> None:
    """The documented way in works."""
    assert partition.serialize is serialize
