"""Failures in words, and the user's function found and called."""

from __future__ import annotations

import io
import json
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flowstone.worker.failure import MAX_ERROR_BYTES, FunctionError, clipped, describe, told
from flowstone.worker.load import call, load
from flowstone.worker.log import line_log


def _raise(error: BaseException) -> None:
    raise error


def caught(error: BaseException) -> BaseException:
    """Return an exception that was raised here, with its traceback."""
    try:
        _raise(error)
    except BaseException as raised:
        return raised
    raise AssertionError


def test_failure_names_type_message_and_place() -> None:
    """An error says its type, its message and where it was raised."""
    line = _raise.__code__.co_firstlineno + 1
    assert describe(caught(KeyError("day"))) == f"KeyError: 'day' (test_worker_failure.py:{line} in _raise)"


def test_failure_inside_a_library_names_the_users_line() -> None:
    """An error raised in an installed package is placed in the user's own code, which can be changed."""
    place: dict[str, Any] = {}
    exec(compile("def fail(): raise ValueError('x')", "/opt/site-packages/lib.py", "exec"), place)  # noqa: S102
    with pytest.raises(ValueError, match="x") as raised:
        place["fail"]()
    assert describe(raised.value).endswith(" in test_failure_inside_a_library_names_the_users_line)")


def test_failure_without_words_is_its_type() -> None:
    """An exception without message or traceback is its type's name."""
    assert describe(ValueError()) == "ValueError"


class _MuteError(Exception):
    def __str__(self) -> str:
        raise KeyError("x")


def test_failure_that_cannot_be_put_in_words_is_still_told() -> None:
    """An exception whose `__str__` raises is named by its type, instead of ending the worker."""
    assert describe(_MuteError()) == "_MuteError: no message, because its __str__ raised KeyError"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_text_can_be_logged(encoding: str) -> None:
    """Half a character, as in the name of a file that is no UTF-8, or a stream that knows no é, ends no worker."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    line_log(stream)("partition.error", error="é \udce9")
    assert json.loads(raw.getvalue().decode(encoding))["error"] == "é \udce9"


def test_long_failure_keeps_both_ends() -> None:
    """A long message is cut in its middle, within 2 KiB of UTF-8, and its place is kept."""
    words = describe(caught(ValueError("begin " + "ä" * 5000 + " end")))
    assert len(words.encode()) <= MAX_ERROR_BYTES
    assert words.startswith("ValueError: begin ä")
    assert " end (test_worker_failure.py:" in words


@pytest.mark.parametrize(("text", "stored"), [("a\0b", "a\\0b"), ("a\udc80b", "a\\udc80b")])
def test_failure_can_be_stored(text: str, stored: str) -> None:
    """What Postgres cannot store is written out, so that reporting a failure never fails itself."""
    assert clipped(text) == stored


def test_log_has_the_traceback() -> None:
    """The log gets the whole traceback; an error in FlowStone's own words needs none."""
    lines: list[dict[str, object]] = []

    def log(event: str, **values: object) -> None:
        lines.append({"event": event, **values})

    told(log, "p", caught(ValueError("x")))
    told(log, "p", caught(FunctionError("y")))
    assert "ValueError: x" in str(lines[0]["traceback"])
    assert lines[1] == {"event": "partition.error", "partition": "p", "error": "y"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("json", "names no function"),
        (":dumps", "names no function"),
        ("json:", "names no function"),
        ("no_such_module_here:f", "ModuleNotFoundError: No module named 'no_such_module_here'; the image"),
        ("json:no_such", "'json' has no 'no_such'"),
        ("json:__name__", "is a str and cannot be called"),
        ("this_is_not..valid:f", "cannot be imported"),
    ],
)
def test_function_that_cannot_be_found_is_explained(target: str, words: str) -> None:
    """Whatever is wrong with the name, the message says it with what to change."""
    with pytest.raises(FunctionError) as refused:
        load(target)
    assert words in str(refused.value)


def test_function_may_be_an_attribute_of_a_class() -> None:
    """A dotted name behind the colon is followed."""
    assert load("json:JSONEncoder.encode") is __import__("json").JSONEncoder.encode


def test_coroutine_is_run_to_its_end() -> None:
    """An async function is awaited."""
    seen = []

    async def function(partition: Any) -> None:
        seen.append(partition)

    call(function, types.SimpleNamespace(text="p"))  # type: ignore[arg-type]  # any object is passed on
    assert len(seen) == 1


def test_generator_is_refused() -> None:
    """A function with `yield` would be taken for done although nothing of it ran."""

    def one(partition: Any) -> Iterator[int]:
        yield 1

    async def other(partition: Any) -> AsyncIterator[int]:
        yield 1

    for function in (one, other):
        with pytest.raises(FunctionError, match="generator"):
            call(function, types.SimpleNamespace())  # type: ignore[arg-type]  # see above


def test_the_password_of_the_pod_is_no_part_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that prints its environment does not show its password to whoever may read the Backfill."""
    monkeypatch.setenv("PGPASSWORD", "s3cret-of-the-pod")
    told_error = describe(caught(RuntimeError("connecting as x:s3cret-of-the-pod@db")))
    assert "s3cret" not in told_error
    assert "x:[PGPASSWORD]@db" in told_error
