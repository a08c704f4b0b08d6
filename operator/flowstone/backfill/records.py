"""What the ledger says and is told, as values.

These records cross the border between the story (this package, pure) and the adapters (`db`, `executor`): the
adapters fill them, the story decides on them. Times are aware UTC datetimes; uids are the resource's uid as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

State = Literal["queued", "running", "succeeded", "failed", "skipped", "cancelled"]
Select = Literal["Missing", "All", "Failed"]
Order = Literal["Ascending", "Descending"]

REFUSED = "tenant "
"""How the reason of a row begins that was skipped because its tenant was refused."""

SUSPECT = "Suspect"
"""Reason on a queued row: its batch died while it was being worked on, so it is handed out alone.

With a name of a part behind it: its batch failed as a whole, so it is handed out with the rows of that part alone.
"""


@dataclass(frozen=True, slots=True)
class NewBackfill:
    """What is registered before anything is planned.

    Attributes:
        uid: The resource's uid.
        scope: Whose rows these are, or "" when the rows carry several tenants' scopes.
        asset: The asset's identity, `<cluster>/<namespace>/<asset id>`.
        spec: The resource's spec as it was read.
        spec_hash: Digest of the frozen part of the spec.
    """

    uid: str
    cluster: str
    namespace: str
    name: str
    scope: str
    asset: str
    spec: Mapping[str, Any]
    spec_hash: str


@dataclass(frozen=True, slots=True)
class BackfillRecord:
    """The ledger's row of one backfill; `total` is None until it is planned.

    Attributes:
        resumed: The token of `resume` that was honoured last.
        retried: The token of `retryFailed` that was honoured last.
        forgiven: Failures that the failure budget overlooks, the earliest ones.
        stopped: The failure budget that stopped it, as text; None when none does.
        pruned: Retention has begun to take its rows away; only the counts remain.
    """

    uid: str
    seq: int
    cluster: str
    namespace: str
    name: str
    scope: str
    asset: str
    spec_hash: str
    set_hash: str | None
    total: int | None
    created_at: datetime
    planned_at: datetime | None
    finished_at: datetime | None
    closed_at: datetime | None
    resumed: str | None = None
    retried: str | None = None
    forgiven: int = 0
    stopped: str | None = None
    pruned: bool = False


@dataclass(frozen=True, slots=True)
class Orders:
    """What is asked for once by a new token; None asks for nothing."""

    resume: str | None = None
    retry_failed: str | None = None


@dataclass(frozen=True, slots=True)
class CommonError:
    """An error that several failures have in common, in the words of one of them."""

    error: str
    count: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The next partition that waits for another attempt.

    Attributes:
        at: When it may be handed out.
        error: Why the last attempt failed.
    """

    at: datetime
    error: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows are in which state; the six add up to `total`.

    `running` includes rows whose failure is reported and not yet settled.
    """

    total: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0

    @property
    def open(self) -> int:
        """Rows that still ask for work."""
        return self.queued + self.running

    @property
    def finished(self) -> int:
        """Rows that need nothing any more."""
        return self.succeeded + self.failed + self.skipped + self.cancelled


@dataclass(frozen=True, slots=True)
class Row:
    """One materialization row that carries a batch's fence."""

    partition: str
    ordinal: int
    state: State
    reason: str | None
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch whose Job is not known to have ended.

    Attributes:
        running: Rows under this fence that are not reported.
        unsettled: Rows under this fence that the worker reported as failed and nobody has settled.
        reporting: The worker reports each partition; the exit code alone says nothing.
    """

    fence: int
    scope: str
    job_name: str
    job_uid: str | None
    template_digest: str
    reporting: bool
    partitions: int
    running: int
    unsettled: int
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """How much may be handed out, and how.

    Attributes:
        max_parallel: Open batches of this backfill after the claim, at most.
        operator_limit: Open batches of all backfills of this cluster after the claim, at most.
        batch_size: Partitions in one batch, at most.
        job_prefix: Start of the Jobs' names; the fence is appended.
        logins: Login that a scope's worker uses, by scope (written to the batch).
        tenant_limits: Open batches a scope may have in all, by scope; a scope left out has no limit.
    """

    max_parallel: int
    operator_limit: int
    batch_size: int
    order: Order
    select: Select
    template_digest: str
    job_prefix: str
    logins: Mapping[str, str] = field(default_factory=dict)
    tenant_limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A batch just handed out: these keys, under this fence, in this scope."""

    fence: int
    scope: str
    job_name: str
    partitions: tuple[str, ...]
    template_digest: str


@dataclass(frozen=True, slots=True)
class RowChange:
    """What becomes of one row of a batch.

    Attributes:
        expected: The state the row must still be in; otherwise the change is void.
        attempts: The row's attempts afterwards.
        charged: An attempt was used up; it is appended to the history.
    """

    partition: str
    expected: State
    state: State
    reason: str | None
    attempts: int
    not_before: datetime | None
    error: str | None
    charged: bool


@dataclass(frozen=True, slots=True)
class Vain:
    """A closed batch that finished nothing and charged nobody, and how it ended."""

    opened_at: datetime
    closed_at: datetime
    outcome: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A partition that failed for good."""

    partition: str
    error: str
    job: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many partitions were skipped for one reason."""

    reason: str
    count: int

    @property
    def refused(self) -> bool:
        """Whether a tenant was refused, which is no success."""
        return self.reason.startswith(REFUSED)


@dataclass(frozen=True, slots=True)
class Interval:
    """A run of consecutive ordinals in one state, by its first and last key."""

    first: str
    last: str
    count: int
