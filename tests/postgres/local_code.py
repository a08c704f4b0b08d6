"""Functions that the tests of local mode run in child processes."""

from __future__ import annotations

import os
import time
from datetime import date

import flowstone


def nothing(partition: flowstone.Partition) -> None:
    """Succeed."""


def slow(partition: flowstone.Partition) -> None:
    """Take as long as a test may take."""
    time.sleep(float(os.environ.get("SECONDS_EACH", "600")))


def picky(partition: flowstone.Partition) -> None:
    """Fail on b."""
    if partition.text == "b":
        print("looking for data", flush=True)
        raise ValueError("no data for b")


def note(partition: flowstone.Partition) -> None:
    """Write down what was given, in the transaction that records the success."""
    start = partition.window.start.isoformat() if partition.window else None
    given = [partition.text, type(partition.key).__name__, partition.tenant, start]
    partition.connection.execute("INSERT INTO public.noted VALUES (%s, %s, %s, %s)", given)


def on_a_day(partition: flowstone.Partition) -> None:
    """Fail unless the key is a day."""
    if type(partition.key) is not date:
        raise TypeError(f"{partition.key!r} is no day")


class Home:
    """Something with a method."""

    def method(self, partition: flowstone.Partition) -> None:
        """Belong to an object."""
