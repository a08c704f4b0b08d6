"""Partition keys and their canonical text.

A key is a date, a datetime, a string, or a tuple of those. Its text is what stands in the ledger, in
manifests and in files, so these hold, and tests try to break them:

1. `deserialize(serialize(key), type) == key` for every key (a datetime comes back as its UTC instant).
2. For one type, different keys have different texts. The type is declared, never guessed from the text.
3. `serialize(deserialize(text, type)) == text`: each key has one text only, and every other spelling is
   refused.
4. `deserialize` raises nothing but `InvalidPartition`, whatever it is given.

The text: a date is `2025-01-15`; a datetime is its UTC instant in whole seconds, `2025-01-15T14:30:00Z`; a
string stands for itself, except that `%`, `|` and control characters (C0, DEL, C1) are percent-encoded byte
by byte in UTF-8 with upper-case digits; a tuple is its elements joined by `|`. A tuple of one element has
the text of that element; the two differ in type. A text has at most 512 bytes of UTF-8.

Types are exact: a `datetime` is not taken for a date although Python derives it from `date`, and subclasses
(an enum member, a pandas timestamp) are refused, because they would not come back as what they were.
"""

from __future__ import annotations

import builtins
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, NoReturn, overload

from flowstone.errors import InvalidPartition

KeyElement = str | date | datetime
Key = KeyElement | tuple[KeyElement, ...]
ElementType = builtins.type[str] | builtins.type[date] | builtins.type[datetime]
KeyType = ElementType | tuple[ElementType, ...]

MAX_KEY_BYTES = 512
"""Longest text of a key in bytes of UTF-8; a longer one is refused."""

SEPARATOR = "|"
"""Stands between the elements of a tuple."""

_RESERVED = re.compile("[\x00-\x1f%|\x7f-\x9f]")
_ENCODED = re.compile("(?:%[0-9A-F]{2})+")
_SHOWN_CHARACTERS = 80


def serialize(key: Key) -> str:
    """Return the canonical text of a key.

    Raises:
        InvalidPartition: the value is no key; the message says what to write instead.
    """
    # A date comes first, and without the limit: it is the commonest key, and its text has 10 bytes.
    if type(key) is date:
        return key.isoformat()
    if type(key) is tuple:
        return _limited(SEPARATOR.join([element_text(element) for element in _elements(key)]))
    return _limited(element_text(key))


@overload
def deserialize(text: str, type: builtins.type[datetime]) -> datetime: ...
@overload
def deserialize(text: str, type: builtins.type[date]) -> date: ...
@overload
def deserialize(text: str, type: builtins.type[str]) -> str: ...
@overload
def deserialize(text: str, type: tuple[ElementType, ...]) -> tuple[KeyElement, ...]: ...
@overload
def deserialize(text: str, type: KeyType) -> Key: ...
def deserialize(text: str, type: KeyType) -> Key:
    """Return the key of a canonical text, the inverse of `serialize` for the declared type.

    Args:
        text: canonical text; `2025-1-5`, ` 2025-01-05` and `%41` are refused.
        type: `date`, `datetime`, `str`, or a tuple of those such as `(str, str, date)`.

    Raises:
        InvalidPartition: the text is no canonical text of that type, or `type` is no type of a key.
    """
    parse = parser_of(type)
    if builtins.type(text) is not str:
        raise InvalidPartition(f"The text of a partition key is a str, not {_named(text)}; use serialize(key).")
    return parse(_limited(text))


def parser_of(type: KeyType) -> Callable[[str], Key]:
    """Return the function that reads one key of this type from a text already known to be short enough."""
    if not isinstance(type, tuple):
        return _element_parser(type)
    if not type:
        raise InvalidPartition("The type () has no elements; name at least one, such as (str, date).")
    parsers = [_element_parser(element) for element in type]
    return lambda text: _parse_tuple(text, parsers)


def normalized(value: Any) -> KeyElement:
    """Return an element as it is kept: a datetime in UTC, everything else as it is.

    Raises:
        InvalidPartition: the value is no element of a key.
    """
    if type(value) is datetime:
        return _instant(value)
    if type(value) is str:
        return _checked_string(value)
    if type(value) is date:
        return value
    return _refuse_element(value)


def element_text(element: Any) -> str:
    """Return the canonical text of one element, without the limit of the whole key."""
    value = normalized(element)
    if type(value) is str:
        return encode(value)
    if type(value) is datetime:
        return instant_text(value)
    return value.isoformat()  # type: ignore[union-attr]  # only a date is left


def instant_text(instant: datetime) -> str:
    """Return the text of a datetime that is in UTC and has whole seconds."""
    return instant.isoformat()[:19] + "Z"


def encode(value: str) -> str:
    """Return a string with `%`, `|` and control characters percent-encoded."""
    return _RESERVED.sub(_percent, value)


def shown(value: Any) -> str:
    """Return a value for a message to people: its canonical look, cut after 80 characters."""
    if type(value) is date:
        return value.isoformat()
    if isinstance(value, datetime):
        return instant_text(value) if value.tzinfo is UTC else value.isoformat()
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(element) for element in value[:8]) + ")"
    if not isinstance(value, str):
        return _named(value)
    return repr(value) if len(value) <= _SHOWN_CHARACTERS else repr(value[:_SHOWN_CHARACTERS]) + "…"


def _elements(key: Any) -> tuple[Any, ...]:
    if not key:
        raise InvalidPartition("The key () has no elements; a key has at least one.")
    for element in key:
        if isinstance(element, tuple | list):
            raise InvalidPartition("A key holds no tuple or list inside a tuple; write one flat tuple.")
    return tuple(key)


def _limited(text: str) -> str:
    """Refuse a text that UTF-8 cannot hold, or that is empty or too long for a key."""
    if len(text) * 3 > MAX_KEY_BYTES:
        size = len(text) if len(text) > MAX_KEY_BYTES else len(_utf8(text))
        if size > MAX_KEY_BYTES:
            raise InvalidPartition(
                f"The key {shown(text)} has at least {size} bytes, {MAX_KEY_BYTES} are allowed;"
                " use a shorter name or its digest."
            )
    return text


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidPartition(
            f"{shown(text)} holds a lone surrogate, which UTF-8 cannot hold; decode the text properly first."
        ) from None


def _checked_string(value: str) -> str:
    if not value:
        raise InvalidPartition("A key holds no empty string; write a name such as 'none' for what has no value.")
    if value.isascii():
        return value
    _utf8(value)
    if not unicodedata.is_normalized("NFC", value):
        raise InvalidPartition(f"{shown(value)} is not in Unicode form NFC; write unicodedata.normalize('NFC', text).")
    return value


def _instant(value: datetime) -> datetime:
    """Return the UTC instant of a datetime, or say why it has none."""
    if value.tzinfo is UTC:
        instant = value
    elif value.utcoffset() is None:
        raise InvalidPartition(
            f"The datetime {value.isoformat()} is naive; give it a zone, such as value.replace(tzinfo=UTC)."
        )
    else:
        instant = _converted(value)
    if instant.microsecond:
        raise InvalidPartition(f"{value.isoformat()} has a fraction of a second; write value.replace(microsecond=0).")
    return instant


def _converted(value: datetime) -> datetime:
    try:
        instant = value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InvalidPartition(
            f"The datetime {value.isoformat()} lies outside the years 1 to 9999 in UTC; choose one inside."
        ) from None
    # Two wall times would share one instant if a time inside a gap were taken for the one after it.
    if _wall(instant, value) != value.replace(tzinfo=None):
        raise InvalidPartition(
            f"The clock of {value.tzinfo} never showed {value.replace(tzinfo=None).isoformat()};"
            f" if you mean that instant, write {instant_text(instant)} in UTC."
        )
    return instant


def _wall(instant: datetime, like: datetime) -> datetime:
    try:
        return instant.astimezone(like.tzinfo).replace(tzinfo=None)
    except (OverflowError, ValueError):
        return like.replace(tzinfo=None)  # a zone that converts one way only has no gaps to find


def _element_parser(type: Any) -> Callable[[str], KeyElement]:
    if type is date:
        return parse_date
    if type is datetime:
        return parse_instant
    if type is str:
        return _parse_string
    raise InvalidPartition(
        "The type of a key is date, datetime, str, or a flat tuple of those such as (str, date),"
        f" not {getattr(type, '__name__', builtins.type(type).__name__)}."
    )


def _parse_tuple(text: str, parsers: list[Callable[[str], KeyElement]]) -> tuple[KeyElement, ...]:
    parts = text.split(SEPARATOR)
    if len(parts) != len(parsers):
        raise InvalidPartition(
            f"The key {shown(text)} has {len(parts)} elements, its type has {len(parsers)};"
            " separate elements by | and write a | inside a string as %7C."
        )
    return tuple([parse(part) for parse, part in zip(parsers, parts, strict=True)])


def parse_date(text: str) -> date:
    """Return the date of a text such as `2025-01-15`."""
    try:
        value = date.fromisoformat(text)
    except ValueError:
        value = None
    # fromisoformat takes 20250115 and 2025-W03-3 as well; comparing keeps one text for each date.
    if value is None or value.isoformat() != text:
        raise InvalidPartition(f"{shown(text)} is no date; write YYYY-MM-DD, such as 2025-01-15.")
    return value


def parse_instant(text: str) -> datetime:
    """Return the UTC instant of a text such as `2025-01-15T14:30:00Z`."""
    try:
        value = datetime.fromisoformat(text[:-1])
    except ValueError:
        value = None
    if value is None or value.isoformat() + "Z" != text or value.microsecond:
        raise InvalidPartition(
            f"{shown(text)} is no datetime; write YYYY-MM-DDTHH:MM:SSZ in UTC, such as 2025-01-15T14:30:00Z."
        )
    return value.replace(tzinfo=UTC)


def _parse_string(text: str) -> str:
    if "%" not in text:
        return _unreserved(_checked_string(text))
    try:
        value = _ENCODED.sub(lambda match: bytes.fromhex(match[0].replace("%", "")).decode(), text)
    except UnicodeDecodeError:
        value = ""
    if not value or encode(value) != text:
        raise InvalidPartition(
            f"{shown(text)} is not percent-encoded as keys are: only %, | and control characters,"
            " with upper-case digits; write % as %25 and | as %7C (in Python, serialize(key) does it)."
        )
    return _checked_string(value)


def _unreserved(text: str) -> str:
    if _RESERVED.search(text):
        raise InvalidPartition(
            f"{shown(text)} holds | or a control character; percent-encoded it is {shown(encode(text))}"
            " (in Python, serialize(key) writes it)."
        )
    return text


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _named(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _refuse_element(value: object) -> NoReturn:
    if isinstance(value, str | date):
        raise InvalidPartition(
            f"A key holds exact types only, not the subclass {type(value).__name__};"
            " write str(value), or value.to_pydatetime() for a pandas timestamp."
        )
    if isinstance(value, tuple | list):
        raise InvalidPartition("A key of several elements is one flat, plain tuple; write (a, b, c).")
    raise InvalidPartition(f"A key holds str, date and datetime, not {_named(value)}; write str(value).")
