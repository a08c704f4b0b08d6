"""How work is handed out: one transaction under row locks, so that the caps hold for any number of replicas.

The order of locks is always: the cluster's row, the backfill's row, queued rows. No scope's login can lock any of
them. Every count is taken by a statement that starts after the locks are held, so it sees what the last claim
committed; the fences are drawn after the rows are locked, so a later hand-out of a partition has a greater one.

A partition that another backfill works on, or that an earlier one has in its queue, stays where it is: the later
backfill waits, then looks into `latest` again (unless `select: All`) and skips what the earlier one made. Should all
of this fail, the unique index on running rows does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from psycopg import errors as pg

from flowstone.backfill.records import BackfillRecord, ClaimedBatch, ClaimRequest, Select
from flowstone.db import registry
from flowstone.db.batching import Candidate, Group, group
from flowstone.db.connection import Transaction
from flowstone.db.planning import ALREADY
from flowstone.errors import LedgerBusy, LedgerRefused

CLAIM_ROWS = 10_000
"""Rows handed out by one claim, at most (or one batch): it holds the cluster's lock meanwhile."""

WINDOW_ROWS = 20_000
"""How far down the queue one claim looks past rows that wait for another backfill."""

_OPEN = """
    SELECT count(*) FILTER (WHERE b.backfill = %(uid)s), count(*)
    FROM flowstone.batch AS b JOIN flowstone.backfill AS f ON f.uid = b.backfill
    WHERE b.state = 'open' AND f.cluster = %(cluster)s
"""

_OPEN_BY_SCOPE = """
    SELECT scope, count(*) FROM flowstone.batch
    WHERE state = 'open' AND scope = ANY(%(scopes)s) GROUP BY scope
"""

# Rows are known by their place (ctid) from here to the UPDATE: they are locked, so they do not move.
_WINDOW = """
    SELECT ctid AS place, scope, partition, ordinal, reason FROM flowstone.materialization
    WHERE backfill = %(uid)s AND state = 'queued' AND (not_before IS NULL OR not_before <= clock_timestamp())
      AND scope <> ALL(%(full)s)
    ORDER BY ordinal {order} LIMIT {limit}
    FOR UPDATE SKIP LOCKED
"""

_MADE = """
    EXISTS (
        SELECT FROM flowstone.latest AS l
        WHERE l.scope = w.scope AND l.asset = %(asset)s AND l.partition = w.partition
    )
"""

# `select: Failed` judged when it planned; what counts is what was made since.
_MADE_SINCE = """
    EXISTS (
        SELECT FROM flowstone.latest AS l
        WHERE l.scope = w.scope AND l.asset = %(asset)s AND l.partition = w.partition
          AND l.succeeded_at > %(planned)s
    )
"""

_MADE_BY_SELECT: Mapping[Select, str] = MappingProxyType({"Missing": _MADE, "Failed": _MADE_SINCE, "All": "false"})

# A reported failure that nobody settled is still that batch's work.
_FREE = """
    NOT EXISTS (
        SELECT FROM flowstone.materialization AS o JOIN flowstone.backfill AS b ON b.uid = o.backfill
        WHERE o.scope = w.scope AND o.asset = %(asset)s AND o.partition = w.partition AND o.backfill <> %(uid)s
          AND (o.state = 'running' OR (o.state = 'failed' AND o.reason IS NULL)
               OR (o.state = 'queued' AND b.seq < %(seq)s))
    )
"""

_CANDIDATES = """
    SELECT w.place::text, w.scope, w.partition, w.reason, {made} FROM ({window}) AS w
    WHERE {free} ORDER BY w.ordinal {order} LIMIT {limit}
"""

_SKIP = """
    UPDATE flowstone.materialization AS m SET state = 'skipped', reason = %(already)s, not_before = NULL
    FROM ({window}) AS w
    WHERE m.ctid = w.place AND {made} AND {free}
"""

_FENCES = "SELECT nextval('flowstone.batch_fence_seq') FROM generate_series(1, %(number)s)"

_INSERT = """
    INSERT INTO flowstone.batch (fence, backfill, scope, job_name, template_digest, login, partitions, opened_at)
    SELECT fence, %(uid)s, scope, job, %(digest)s, login, size, clock_timestamp()
    FROM unnest(%(fences)s::bigint[], %(scopes)s::text[], %(jobs)s::text[], %(logins)s::text[], %(sizes)s::int[])
        AS b (fence, scope, job, login, size)
"""

_START = """
    UPDATE flowstone.materialization AS m
    SET state = 'running', fence = p.fence, reason = NULL, not_before = NULL, error = NULL,
        started_at = clock_timestamp(), finished_at = NULL
    FROM unnest(%(places)s::tid[], %(fences)s::bigint[]) AS p (place, fence)
    WHERE m.ctid = p.place
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one transaction handed out, and how many rows it skipped instead."""

    batches: list[ClaimedBatch]
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What the caps leave: batches in all, and batches by scope where a scope is limited."""

    batches: int
    slots: dict[str, int]

    @property
    def full(self) -> list[str]:
        """Scopes that may get no further batch."""
        return [scope for scope, left in self.slots.items() if left < 1]


def claim(tx: Transaction, cluster: str, uid: str, request: ClaimRequest) -> Claim:
    """Hand out batches of a backfill as far as the caps allow; see `Ledger.claim`."""
    tx.plan_without("hashjoin", "mergejoin")
    _lock_cluster(tx, cluster)
    record = registry.lock(tx, uid)
    if record.total is None or record.closed_at is not None:
        return Claim([])
    room = _room(tx, cluster, uid, request)
    if room.batches < 1:
        return Claim([])
    candidates, skipped = _pick(tx, record, request, room)
    groups = group(candidates, batches=room.batches, size=request.batch_size, slots=room.slots)
    if not groups:
        return Claim([], skipped)
    try:
        return Claim(_hand_out(tx, uid, request, groups), skipped)
    except pg.UniqueViolation as error:
        raise LedgerBusy("a partition to be handed out is running in another backfill") from error


def _lock_cluster(tx: Transaction, cluster: str) -> None:
    query = "SELECT cluster FROM flowstone.cluster_limit WHERE cluster = %(cluster)s FOR UPDATE"
    if tx.row(query, {"cluster": cluster}) is None:
        raise LedgerRefused(f"cluster: {cluster}: no backfill of it is registered: register one first")


def _room(tx: Transaction, cluster: str, uid: str, request: ClaimRequest) -> Room:
    row = tx.row(_OPEN, {"uid": uid, "cluster": cluster})
    mine, everybody = row or (0, 0)
    batches = min(request.max_parallel - mine, request.operator_limit - everybody)
    return Room(batches, _slots(tx, request) if batches > 0 else {})


def _slots(tx: Transaction, request: ClaimRequest) -> dict[str, int]:
    if not request.tenant_limits:
        return {}
    taken: dict[str, int] = dict(tx.rows(_OPEN_BY_SCOPE, {"scopes": list(request.tenant_limits)}))
    return {scope: limit - taken.get(scope, 0) for scope, limit in request.tenant_limits.items()}


def _pick(tx: Transaction, record: BackfillRecord, request: ClaimRequest, room: Room) -> tuple[list[Candidate], int]:
    """Rows to hand out, locked, in queue order; what `latest` already has is skipped on the way."""
    look = _Look(tx, record, request, room)
    found = look.candidates()
    skipped = 0
    if any(made for _, made in found):
        skipped = look.skip_made()
        found = look.candidates()
    return [row for row, made in found if not made], skipped


class _Look:
    """The view of one claim into the queue."""

    def __init__(self, tx: Transaction, record: BackfillRecord, request: ClaimRequest, room: Room) -> None:
        self._tx = tx
        self._names = {
            "uid": record.uid,
            "asset": record.asset,
            "seq": record.seq,
            "planned": record.planned_at,
            "full": room.full,
            "already": ALREADY,
        }
        self._order = "ASC" if request.order == "Ascending" else "DESC"
        self._made = _MADE_BY_SELECT[request.select]
        self._shared = self._is_shared()
        self._limit = request.batch_size * min(room.batches, max(1, CLAIM_ROWS // request.batch_size))

    def candidates(self) -> list[tuple[Candidate, bool]]:
        """Rows that are due and free, each with whether `latest` has it."""
        window = self._window(WINDOW_ROWS if self._shared else self._limit)
        query = _CANDIDATES.format(
            made=self._made, window=window, free=self._free, order=self._order, limit=self._limit
        )
        return [
            (Candidate(scope, partition, place, reason or ""), made)
            for place, scope, partition, reason, made in self._tx.rows(query, self._names)
        ]

    def skip_made(self) -> int:
        """Skip what `latest` has, as far down the queue as one claim looks."""
        window = self._window(WINDOW_ROWS)
        return self._tx.run(_SKIP.format(window=window, made=self._made, free=self._free), self._names)

    @property
    def _free(self) -> str:
        return _FREE if self._shared else "true"

    def _window(self, limit: int) -> str:
        return _WINDOW.format(order=self._order, limit=limit)

    def _is_shared(self) -> bool:
        """Whether any other backfill of the asset exists; mostly none does, and nothing has to be compared."""
        query = "SELECT EXISTS (SELECT FROM flowstone.backfill WHERE asset = %(asset)s AND uid <> %(uid)s)"
        return self._tx.row(query, self._names) == (True,)


def _hand_out(tx: Transaction, uid: str, request: ClaimRequest, groups: Sequence[Group]) -> list[ClaimedBatch]:
    """Draw the fences, open the batches, start the rows."""
    fences = [fence for (fence,) in tx.rows(_FENCES, {"number": len(groups)})]
    ascending = request.order == "Ascending"
    batches = [
        ClaimedBatch(
            fence=fence,
            scope=made.scope,
            job_name=f"{request.job_prefix}{fence}",
            # Within a batch always ascending, as `rows_of` reads it: the first without a report is the one it died on.
            partitions=tuple(row.partition for row in (made.rows if ascending else reversed(made.rows))),
            template_digest=request.template_digest,
        )
        for fence, made in zip(fences, groups, strict=True)
    ]
    tx.run(_INSERT, {"uid": uid, "digest": request.template_digest, **_columns(batches, request)})
    pairs = [(row.place, fence) for fence, made in zip(fences, groups, strict=True) for row in made.rows]
    started = tx.run(_START, {"places": [place for place, _ in pairs], "fences": [fence for _, fence in pairs]})
    if started != len(pairs):
        raise LedgerBusy("rows to be handed out changed meanwhile")
    return batches


def _columns(batches: Sequence[ClaimedBatch], request: ClaimRequest) -> dict[str, list[object]]:
    return {
        "fences": [batch.fence for batch in batches],
        "scopes": [batch.scope for batch in batches],
        "jobs": [batch.job_name for batch in batches],
        "logins": [request.logins.get(batch.scope) for batch in batches],
        "sizes": [len(batch.partitions) for batch in batches],
    }
