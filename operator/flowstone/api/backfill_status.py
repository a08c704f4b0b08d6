"""What a Backfill says about itself, at most 16 KiB whatever its size."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from flowstone.api.base import Instant, StatusModel
from flowstone.api.conditions import Conditions
from flowstone.api.text import MAX_KEY

MAX_FAILURES = 10
"""Failures that a status lists at most; the ledger has them all."""

Phase = Literal["Planning", "Running", "Suspended", "Blocked", "Succeeded", "PartlyFailed", "Failed", "Cancelled"]
Count = Annotated[StrictInt, Field(ge=0)]


class StatusCounts(StatusModel):
    """How many partitions are in which state; the other six add up to `total`."""

    total: Count = 0
    """Partitions of the whole set, written once when it is planned."""

    queued: Count = 0
    """Partitions that wait to be handed out, for the first time or again."""

    running: Count = 0
    """Partitions that were handed out in a batch and have no outcome yet."""

    succeeded: Count = 0
    """Partitions that are done."""

    failed: Count = 0
    """Partitions whose attempts are used up."""

    skipped: Count = 0
    """Partitions that needed no work, such as those that were materialized before."""

    cancelled: Count = 0
    """Partitions that were given up by `cancel`."""


class StatusFailure(StatusModel):
    """One partition that failed for good."""

    partition: Annotated[str, Field(max_length=MAX_KEY)]
    """The partition's serialized key."""

    error: Annotated[str, Field(max_length=2048)] = ""
    """The error of its last attempt, cut to fit."""

    job: Annotated[str, Field(max_length=253)] = ""
    """The Job of its last attempt."""

    attempts: Count = 0
    """Attempts that were used up."""


class Eta(StatusModel):
    """When the Backfill will probably be finished."""

    earliest: Instant
    """The earliest likely moment, in UTC."""

    latest: Instant
    """The latest likely moment, in UTC."""


class Summary(StatusModel):
    """Which partitions are done and which failed, as intervals for people."""

    succeeded: Annotated[str, Field(max_length=8192)] = ""
    """Such as `2013-01-01..2013-03-31, 2013-04-02 (91)`, cut to fit."""

    failed: Annotated[str, Field(max_length=8192)] = ""
    """The same of the partitions that failed for good."""


class BackfillStatus(StatusModel):
    """What the operator last saw of the Backfill."""

    observed_generation: Annotated[StrictInt, Field(ge=-1)] = -1
    """The metadata.generation that this status is about; -1 before the operator has seen the Backfill."""

    phase: Phase | None = None
    """Where the Backfill stands, in one word."""

    counts: StatusCounts | None = None
    """How many partitions are in which state."""

    active_batches: Count | None = None
    """Batches whose Job is not known to have ended."""

    progress: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    """Percent of the partitions that need nothing any more."""

    failures: Annotated[
        tuple[StatusFailure, ...],
        Field(max_length=MAX_FAILURES, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Some of the partitions that failed for good, with their last error."""

    rate: Annotated[float, Field(ge=0)] | None = None
    """Partitions finished per minute of late."""

    eta: Eta | None = None
    """When it will probably be finished."""

    summary: Summary | None = None
    """Which partitions are done and which failed, as intervals."""

    delivery: Literal["ExactlyOnce", "AtLeastOnce"] | None = None
    """Whether a partition's effects are certain to happen once, or may be repeated after a crash."""

    conditions: Conditions = ()
    """Ready, Succeeded, Finished, Reconciling, Stalled, Blocked and Suspended, as they apply."""
