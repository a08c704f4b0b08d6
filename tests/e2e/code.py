"""What the tests' assets compute; mounted into their pods."""

from __future__ import annotations

import os
import time
from typing import Any

import flowstone


def nothing(partition: flowstone.Partition) -> None:
    """Succeed."""


def slow(partition: flowstone.Partition) -> None:
    """Take as long as SECONDS says."""
    time.sleep(float(os.environ["SECONDS_EACH"]))


def picky(partition: flowstone.Partition) -> None:
    """Fail on the keys that FAIL_ON names."""
    if partition.text in os.environ["FAIL_ON"].split(","):
        raise ValueError(f"no data for {partition.text}")


def deadly(partition: flowstone.Partition) -> None:
    """End the whole process on the key that DIE_ON names."""
    if partition.text == os.environ["DIE_ON"]:
        os._exit(137)


def foreign(partition: Any) -> None:
    """Fail when the login sees rows of any scope but its own."""
    rows = partition.connection.execute("SELECT DISTINCT scope FROM flowstone.materialization").fetchall()
    if rows != [(os.environ["FLOWSTONE_SCOPE"],)]:
        raise ValueError(f"sees {rows}")


def kept(partition: Any) -> None:
    """Write the key through the handed connection, without a word about where that leads."""
    partition.connection.execute("INSERT INTO result VALUES (%s)", [partition.text])


def made(partition: Any) -> None:
    """Write a row through the handed connection, in no hurry."""
    time.sleep(float(os.environ["SECONDS_EACH"]))
    values = (partition.text, int(os.environ["FLOWSTONE_FENCE"]))
    partition.connection.execute("INSERT INTO chaos.made VALUES (%s, %s)", values)
