"""Outcomes in a termination message."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.worker.termination import UNKNOWN_ERROR, read_positions, write_positions

OUTCOMES = st.dictionaries(st.integers(0, 9_999), st.just("") | st.text(min_size=1, max_size=200), max_size=200)


@given(OUTCOMES)
def test_what_is_written_is_read(outcomes: dict[int, str]) -> None:
    """Every outcome that fits comes back; an error that does not fit becomes a sentence that says so."""
    message = write_positions(outcomes)
    if message is None:
        assert len(outcomes) > 100
        return
    assert len(message.encode()) <= 3072
    found = read_positions(message)
    assert found is not None
    assert [position for position, _ in found] == sorted(outcomes)
    for position, error in found:
        assert error == outcomes[position] or (error == UNKNOWN_ERROR and outcomes[position])


def test_neighbours_become_intervals() -> None:
    """Neighbouring positions are one interval, so that 10,000 successes are a short text."""
    message = write_positions(dict.fromkeys(range(10_000), ""))
    assert message == '{"flowstone":1,"succeeded":"0-9999","failed":""}'


def test_errors_go_first_when_room_is_short() -> None:
    """Long errors are left out from the last on; the positions stay."""
    message = write_positions(dict.fromkeys(range(5), "x" * 1000))
    assert message is not None
    assert sorted(json.loads(message)["errors"]) == ["0", "1"]
    assert read_positions(message) == (
        *((position, "x" * 1000) for position in (0, 1)),
        *((position, UNKNOWN_ERROR) for position in (2, 3, 4)),
    )


def test_outcomes_that_do_not_fit_make_no_message() -> None:
    """1,000 lone positions are too long for a message; the writer learns it."""
    assert write_positions(dict.fromkeys(range(0, 2000, 2), "")) is None


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Traceback (most recent call last):",
        '{"succeeded":"0"}',
        '{"flowstone":1,"succeeded":"0-5',
        '{"flowstone":1,"succeeded":"0-999999999999","failed":""}',
        '{"flowstone":1,"succeeded":"0-9,0-9","failed":""}',
        '{"flowstone":1,"succeeded":"5-2","failed":""}',
        '{"flowstone":1,"succeeded":"-1","failed":""}',
        '{"flowstone":1,"succeeded":"a","failed":""}',
        '{"flowstone":1,"succeeded":3,"failed":""}',
        '{"flowstone":1,"succeeded":"","failed":"0","errors":["x"]}',
    ],
)
def test_other_messages_are_left_alone(message: str) -> None:
    """Another program's message, a cut one, or one that names what no batch has is none of ours."""
    assert read_positions(message) is None
