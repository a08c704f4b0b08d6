"""How a backfill's partitions come into the ledger: one transaction, one stream, constant memory.

Rows go in by COPY, in its binary format, which costs the server a fifth less than text. psycopg's `write_row` costs
more than all of the server's work, so the blocks are made here.
Where the login does not bypass row level security COPY is refused, and where earlier successes may have to be
left out each row needs a look at `latest`: then the stream goes to a temporary table, and one INSERT takes it
from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from struct import Struct
from uuid import UUID

from psycopg import errors as pg

from flowstone.backfill.records import BackfillRecord, Counts, Select
from flowstone.db import reading, registry
from flowstone.db.connection import LONG_SECONDS, Transaction
from flowstone.db.roles import bypasses_row_security
from flowstone.errors import LedgerRefused

BLOCK_ROWS = 512
"""Rows that go to the server at a time, about 100 KiB."""

BLOCK_SECONDS = 20.0
"""Longest time one block may take; a wire that stands still for longer is given up."""

ALREADY = "AlreadyMaterialized"
"""Reason of a row that `select: Missing` or `Failed` skips because it has succeeded."""

NOT_FAILED = "NotFailed"
"""Reason of a row that `select: Failed` skips because no earlier backfill failed on it."""

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""How binary COPY data begins: no flags, and nothing added to the header."""

TRAILER = b"\xff\xff"
"""How it ends."""

_COUNT = Struct(">h")
"""How many fields a row has."""

_LENGTH = Struct(">i")
"""How many bytes a field has, before it; -1 stands for NULL."""

_MIDDLE = Struct(">iqi")
"""The ordinal with its length, and the length of the partition that comes last."""

_DIRECT = """
    COPY flowstone.materialization (asset, backfill, scope, state, reason, ordinal, partition)
    FROM STDIN WITH (FORMAT binary)
"""

_STAGE = """
    CREATE TEMPORARY TABLE flowstone_plan (
        scope text COLLATE "C", state text, reason text, ordinal bigint, partition text COLLATE "C"
    ) ON COMMIT DROP
"""

_STAGED = "COPY pg_temp.flowstone_plan FROM STDIN WITH (FORMAT binary)"

_FROM_STAGE = """
    WITH planned AS (
        INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, reason)
        SELECT p.scope, %(asset)s, p.partition, %(uid)s, p.ordinal,
               CASE WHEN l.scope IS NULL THEN p.state ELSE 'skipped' END,
               CASE WHEN l.scope IS NULL OR p.state = 'skipped' THEN p.reason ELSE %(already)s END
        FROM pg_temp.flowstone_plan AS p LEFT JOIN flowstone.latest AS l
          ON %(missing)s AND l.scope = p.scope AND l.asset = %(asset)s AND l.partition = p.partition
        ORDER BY p.ordinal
        RETURNING state
    )
    SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'skipped') FROM planned
"""

# Few partitions fail, so they are gathered first. A success counts when it came after the failed attempt began; that
# time and the success's are the server's own.
_FAILED_FROM_STAGE = """
    WITH failed AS (
        SELECT m.scope, m.partition, max(coalesce(m.started_at, '-infinity')) AS at
        FROM flowstone.backfill AS b JOIN flowstone.materialization AS m ON m.backfill = b.uid
        WHERE b.asset = %(asset)s AND b.seq < %(seq)s AND m.asset = b.asset
          AND m.state = 'failed' AND m.reason IS NOT NULL
        GROUP BY m.scope, m.partition
    ), judged AS (
        SELECT p.scope, p.partition, p.ordinal, CASE
            WHEN p.state = 'skipped' THEN p.reason
            WHEN f.at > coalesce(l.succeeded_at, '-infinity') OR (f.at IS NOT NULL AND l.scope IS NULL) THEN NULL
            WHEN l.scope IS NULL THEN %(not_failed)s
            ELSE %(already)s END AS reason
        FROM pg_temp.flowstone_plan AS p
        LEFT JOIN failed AS f ON f.scope = p.scope AND f.partition = p.partition
        LEFT JOIN flowstone.latest AS l ON l.scope = p.scope AND l.asset = %(asset)s AND l.partition = p.partition
    ), planned AS (
        INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, reason)
        SELECT scope, %(asset)s, partition, %(uid)s, ordinal,
               CASE WHEN reason IS NULL THEN 'queued' ELSE 'skipped' END, reason
        FROM judged ORDER BY ordinal
        RETURNING state
    )
    SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'skipped') FROM planned
"""

# A backfill with rows of one scope can be asked directly; with many, another backfill of the asset is the sign.
_MAY_BE_DONE = """
    SELECT EXISTS (SELECT FROM flowstone.latest WHERE scope = %(scope)s AND asset = %(asset)s)
        OR (%(scope)s = '' AND EXISTS (SELECT FROM flowstone.backfill WHERE asset = %(asset)s AND uid <> %(uid)s))
"""


def plan(
    tx: Transaction,
    uid: str,
    rows: Iterable[tuple[str, str]],
    *,
    total: int,
    set_hash: str,
    select: Select,
    skipped: Mapping[str, str],
) -> Counts:
    """Queue every partition of a backfill once; see `Ledger.plan`."""
    record = registry.lock(tx, uid)
    if record.total is not None:
        return reading.counts(tx, uid)
    if record.closed_at is not None:
        raise LedgerRefused(f"backfill: {uid}: closed, since its resource is gone: register a new one")
    tx.allow(LONG_SECONDS)
    try:
        counts = _queue(tx, record, rows, select, skipped)
    except pg.UniqueViolation as error:
        raise LedgerRefused("partitions: one of them is listed twice: name each one once") from error
    if counts.total != total:
        raise LedgerRefused(f"total: {total}: but the plan has {counts.total} rows: they must be as many")
    tx.run(
        "UPDATE flowstone.backfill SET total = %(total)s, set_hash = %(hash)s, planned_at = now() WHERE uid = %(uid)s",
        {"total": total, "hash": set_hash, "uid": uid},
    )
    return counts


def _queue(
    tx: Transaction,
    record: BackfillRecord,
    rows: Iterable[tuple[str, str]],
    select: Select,
    skipped: Mapping[str, str],
) -> Counts:
    if select == "Failed":
        return _queue_staged(tx, record, rows, _FAILED_FROM_STAGE, skipped)
    missing = select == "Missing" and _may_be_done(tx, record)
    if missing or not bypasses_row_security(tx.connection):
        return _queue_staged(tx, record, rows, _FROM_STAGE, skipped, missing=missing)
    stream = Stream(rows, (record.asset.encode(), UUID(record.uid).bytes), skipped)
    _copy(tx, _DIRECT, stream)
    return Counts(total=stream.rows, queued=stream.rows - stream.skipped, skipped=stream.skipped)


def _queue_staged(
    tx: Transaction,
    record: BackfillRecord,
    rows: Iterable[tuple[str, str]],
    query: str,
    skipped: Mapping[str, str],
    *,
    missing: bool = False,
) -> Counts:
    tx.run(_STAGE)
    _copy(tx, _STAGED, Stream(rows, (), skipped))
    tx.run("ANALYZE pg_temp.flowstone_plan")
    names = {
        "asset": record.asset,
        "uid": record.uid,
        "seq": record.seq,
        "missing": missing,
        "already": ALREADY,
        "not_failed": NOT_FAILED,
    }
    row = tx.row(query, names)
    queued, done = row or (0, 0)
    return Counts(total=queued + done, queued=queued, skipped=done)


def _may_be_done(tx: Transaction, record: BackfillRecord) -> bool:
    names = {"scope": record.scope, "asset": record.asset, "uid": record.uid}
    return tx.row(_MAY_BE_DONE, names) == (True,)


def _copy(tx: Transaction, target: str, stream: Stream) -> None:
    with tx.connection.cursor() as cursor, cursor.copy(target.encode()) as copy:
        for block in stream:
            copy.write(block)
            tx.extend(BLOCK_SECONDS)
        tx.extend(LONG_SECONDS)


def _field(value: bytes | None) -> bytes:
    return _LENGTH.pack(-1) if value is None else _LENGTH.pack(len(value)) + value


class Stream:
    """The plan's rows as blocks of binary COPY data, numbered as they come; `rows` and `skipped` count what has passed.

    Each row has the fields `constants`, scope, state, reason, ordinal, partition.

    Args:
        rows: (scope, partition) in the order of the set.
        constants: Values of the columns that come first, in their binary form.
        skipped: Reason by scope, for scopes whose rows are not to be worked on.
    """

    def __init__(
        self, rows: Iterable[tuple[str, str]], constants: tuple[bytes, ...], skipped: Mapping[str, str]
    ) -> None:
        self.rows = 0
        self.skipped = 0
        self._source = rows
        self._constants = constants
        self._reasons = skipped

    def __iter__(self) -> Iterator[bytes]:
        yield SIGNATURE
        starts: dict[str, bytes] = {}
        source = iter(self._source)
        middle = _MIDDLE.pack
        while block := tuple(islice(source, BLOCK_ROWS)):
            for scope in {scope for scope, _ in block} - starts.keys():
                starts[scope] = self._start(scope)
            rows = [
                starts[scope] + middle(8, ordinal, len(key := partition.encode())) + key
                for ordinal, (scope, partition) in enumerate(block, self.rows)
            ]
            self.rows += len(block)
            if self._reasons:
                self.skipped += sum(scope in self._reasons for scope, _ in block)
            yield b"".join(rows)
        yield TRAILER

    def _start(self, scope: str) -> bytes:
        """What comes before the ordinal, the same for all rows of a scope."""
        reason = self._reasons.get(scope)
        state, why = (b"queued", None) if reason is None else (b"skipped", reason.encode())
        fields = (*self._constants, scope.encode(), state, why)
        return _COUNT.pack(len(fields) + 2) + b"".join(map(_field, fields))
