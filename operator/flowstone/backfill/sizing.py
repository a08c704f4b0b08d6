"""How many partitions make a batch.

A pod costs seconds before it works, so a batch shall last about `target_seconds`: long enough that starting it
costs a few percent, short enough that a retry or an edit does not wait long. Until something was measured, the
work is spread evenly over the slots, in batches small enough to learn from, and a few of them go ahead: where
partitions are tiny they are done before a pod for every slot would have started. Towards the end it is spread evenly
again, so that the slots come to rest together, but not so thinly that starting pods is most of what happens.
"""

from __future__ import annotations

import math

FIRST_GUESS = 50
"""Partitions in a batch, at most, before the first measurement."""

PROBES = 4
"""Batches that go ahead while nothing is measured."""

PROBE_SECONDS = 5.0
"""How long the others wait for a measurement, at most: about the start of a pod."""

SHORTEST = 3
"""A batch made for an even spread lasts the target's so-manieth part at least."""

LARGEST = 10_000
"""Partitions in a batch, at most (an object's annotations hold 256 KiB)."""

PLENTY = 1_000_000_000
"""Waiting partitions that make batches as large as they get; slots times that size is all that has to be counted."""


def open_slots(slots: int, *, known: bool, oldest: float | None) -> int:
    """Batches that may be open now.

    Args:
        slots: The cap.
        known: The size is given or measured.
        oldest: Seconds since the oldest open batch was handed out; None when none is open.
    """
    if known or (oldest is not None and oldest >= PROBE_SECONDS):
        return slots
    return min(slots, PROBES)


def batch_size(
    wanted: int | None,
    *,
    queued: int,
    slots: int,
    target_seconds: float = 60,
    seconds_per_partition: float | None = None,
) -> int:
    """Partitions in the next batches.

    Args:
        wanted: The spec's `batchSize`; it decides if set.
        queued: Partitions that wait.
        slots: Batches that may run side by side.
        target_seconds: How long a batch shall last.
        seconds_per_partition: Measured, None when nothing has finished yet.
    """
    if wanted is not None:
        return min(wanted, LARGEST)
    share = max(1, math.ceil(queued / max(slots, 1)))
    if seconds_per_partition is None:
        return min(share, FIRST_GUESS)
    fitting = math.floor(target_seconds / max(seconds_per_partition, 1e-6))
    return max(1, min(max(share, fitting // SHORTEST), fitting, LARGEST))
