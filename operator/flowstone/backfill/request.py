"""What the engine is given and what it found out, as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowstone.api.backfill import BackfillSpec
from flowstone.backfill.records import Counts, OpenBatch
from flowstone.db.ledger import Ledger
from flowstone.executor.port import Blockage
from flowstone.telemetry import Logger, Metrics


class LeasedError(Exception):
    """Another replica has this backfill."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for all backfills of this replica.

    Attributes:
        owner: This replica, as the owner of leases.
        max_parallel: Open batches of all backfills together.
        node_lost_seconds: How long a run may outlive its own end, on a machine that does not answer, before its
            traces are taken away by force and its slot is free.
    """

    owner: str
    cluster: str
    max_parallel: int = 200
    lease_seconds: float = 15
    resync_seconds: float = 60
    node_lost_seconds: float = 300


@dataclass(frozen=True, slots=True)
class Tools:
    """What the engine works with; the composition root fills it.

    Attributes:
        jitter: A new number in 0..1 for each call.
    """

    ledger: Ledger
    limits: Limits
    metrics: Metrics
    log: Logger
    now: Callable[[], datetime]
    jitter: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Request:
    """A backfill as it is wanted.

    Attributes:
        raw: The spec as it was written.
        run_prefix: Start of the runs' names.
    """

    uid: str
    namespace: str
    name: str
    spec: BackfillSpec
    raw: dict[str, Any]
    run_prefix: str


@dataclass(slots=True)
class Progress:
    """What a pass found out; it is filled as the pass goes, so that a pass that broke off still tells something.

    Attributes:
        pruned: Retention has taken rows away, so only the counts can still be told.
        again: Seconds until the next pass; None when only an event makes one necessary.
    """

    counts: Counts | None = None
    batches: Sequence[OpenBatch] = ()
    blockage: Blockage | None = None
    pruned: bool = False
    again: float | None = None
