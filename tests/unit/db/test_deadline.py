"""Sockets that are shut down when their time is over, by one thread for all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from flowstone.db.deadline import Deadline


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two ends; reading waits for 30 s at most."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield ours, theirs


def test_who_waits_too_long_is_cut_off(wire: tuple[socket.socket, socket.socket]) -> None:
    """Also when the thread already waits for a later deadline, and whatever the other side does not do."""
    other, its_peer = socket.socketpair()
    with other, its_peer, Deadline(other, 3600), Deadline(wire[0], 0.2):
        begin = time.monotonic()
        assert wire[0].recv(1) == b""  # the end of the stream
        assert 0.2 <= time.monotonic() - begin < 10


def test_whoever_is_done_or_was_given_more_is_left_alone(wire: tuple[socket.socket, socket.socket]) -> None:
    """The last of three deadlines is let pass; the first two would have cut the wire before."""
    ours, theirs = wire
    last, its_peer = socket.socketpair()
    with Deadline(ours, 0.1):
        pass
    with last, its_peer, Deadline(ours, 0.1) as extended, Deadline(last, 0.3):
        extended.extend(3600)
        last.recv(1)
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def test_a_connection_that_closed_itself_is_no_trouble() -> None:
    """Its number may by then belong to somebody else, who must not be hurt."""
    ours, theirs = socket.socketpair()
    with theirs, Deadline(ours, 0.2):
        number = ours.fileno()
        ours.close()
        somebody, else_ = socket.socketpair()
        with somebody, else_:
            assert number in (somebody.fileno(), else_.fileno())
            assert theirs.recv(1) == b""
            somebody.send(b"x")
            assert else_.recv(1) == b"x"


def test_many_deadlines_are_one_thread() -> None:
    """A transaction does not begin a thread."""
    with ExitStack() as stack:
        for _ in range(50):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            stack.enter_context(Deadline(ours, 3600))
        assert [one.name for one in threading.enumerate()].count("ledger-deadlines") == 1
