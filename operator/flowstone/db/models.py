"""The ledger's tables, as SQLAlchemy sees them; Alembic compares the database with this module.

Only migrations and tests use these classes: the ledger itself speaks SQL, because each of its steps is one set
operation. Names, states and invariants are told in `ledger.py`; who may touch what stands in `roles.py` and in the
migrations, since SQLAlchemy knows neither row level security nor grants.

Every text that is compared or sorted is COLLATE "C": keys are sorted by the typed tuple, never by a locale, and an
index must survive an upgrade of the system's collations.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, OID
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "flowstone"
"""Name of the one schema that holds the ledger."""

ERROR_BYTES = 8192
"""Longest error text the ledger takes, in bytes: a scope's login writes it, and the operator has to read it."""

_NAMES = {
    "pk": "%(table_name)s_pkey",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
}

Key = Text(collation="C")
Time = DateTime(timezone=True)


class Base(DeclarativeBase):
    """All tables live in schema `flowstone`; constraints have names that do not depend on their order."""

    metadata = MetaData(schema=SCHEMA, naming_convention=_NAMES)


class Backfill(Base):
    """A request to materialize an asset over a set of partitions; `total` is null until it is planned.

    `seq` orders backfills of one asset: of two that overlap, the one registered first works first.
    `lease_owner` and `lease_until` keep two replicas from working on the same backfill at once.
    `resumed` and `retried` are the tokens honoured last, `forgiven` is how many failures the failure budget overlooks,
    `stopped` the budget that stopped the backfill. `pruned_counts` are its counts from the moment on when retention
    begins to take its rows away, `pruned_at` is when none is left.
    """

    __tablename__ = "backfill"
    __table_args__ = (
        CheckConstraint("total >= 0", name="total"),
        CheckConstraint("forgiven >= 0", name="forgiven"),
        Index("backfill_asset_idx", "asset", "seq"),
        Index("backfill_open_idx", "cluster", postgresql_where=text("closed_at IS NULL")),
    )

    uid: Mapped[UUID] = mapped_column(PG_UUID, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    cluster: Mapped[str] = mapped_column(Key)
    namespace: Mapped[str] = mapped_column(Key)
    name: Mapped[str] = mapped_column(Key)
    scope: Mapped[str] = mapped_column(Key)
    asset: Mapped[str] = mapped_column(Key)
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    spec_hash: Mapped[str] = mapped_column(Text)
    set_hash: Mapped[str | None] = mapped_column(Text)
    total: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Time, server_default=func.now())
    planned_at: Mapped[datetime | None] = mapped_column(Time)
    finished_at: Mapped[datetime | None] = mapped_column(Time)
    closed_at: Mapped[datetime | None] = mapped_column(Time)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None] = mapped_column(Time)
    resumed: Mapped[str | None] = mapped_column(Text)
    retried: Mapped[str | None] = mapped_column(Text)
    forgiven: Mapped[int] = mapped_column(BigInteger, server_default="0")
    stopped: Mapped[str | None] = mapped_column(Text)
    pruned_counts: Mapped[dict[str, int] | None] = mapped_column(JSONB)
    pruned_at: Mapped[datetime | None] = mapped_column(Time)


class Materialization(Base):
    """One partition of one backfill: queue entry and history in one row.

    The table is as wide as planning is slow (a million rows in seconds), so a new row enters two indexes only:
    its key, the one that serves queue, counts and intervals, and partial ones that planning never touches.
    """

    __tablename__ = "materialization"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'skipped', 'cancelled')", name="state"),
        CheckConstraint("state <> 'queued' OR fence IS NULL", name="fence"),
        CheckConstraint("state NOT IN ('running', 'succeeded', 'failed') OR fence IS NOT NULL", name="fenced"),
        CheckConstraint("attempts >= 0", name="attempts"),
        CheckConstraint(f"octet_length(error) <= {ERROR_BYTES}", name="error"),
        Index("materialization_state_idx", "backfill", "state", "ordinal"),
        Index(
            "materialization_due_idx",
            "backfill",
            "not_before",
            postgresql_where=text("state = 'queued' AND not_before IS NOT NULL"),
        ),
        Index("materialization_fence_idx", "fence", postgresql_where=text("fence IS NOT NULL")),
        Index(
            "materialization_unsettled_idx",
            "backfill",
            postgresql_where=text("state = 'failed' AND reason IS NULL"),
        ),
        Index(
            "materialization_running_idx",
            "scope",
            "asset",
            "partition",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
    )

    scope: Mapped[str] = mapped_column(Key, primary_key=True)
    asset: Mapped[str] = mapped_column(Key, primary_key=True)
    partition: Mapped[str] = mapped_column(Key, primary_key=True)
    backfill: Mapped[UUID] = mapped_column(PG_UUID, primary_key=True)
    ordinal: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Key, server_default="queued")
    reason: Mapped[str | None] = mapped_column(Text)
    fence: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    not_before: Mapped[datetime | None] = mapped_column(Time)
    started_at: Mapped[datetime | None] = mapped_column(Time)
    finished_at: Mapped[datetime | None] = mapped_column(Time)
    error: Mapped[str | None] = mapped_column(Text)


class Batch(Base):
    """Consecutive partitions of one scope that one Job works off; its key is the fence."""

    __tablename__ = "batch"
    __table_args__ = (
        CheckConstraint("state IN ('open', 'closed')", name="state"),
        CheckConstraint("(state = 'closed') = (closed_at IS NOT NULL)", name="closed"),
        Index("batch_backfill_idx", "backfill", "fence"),
        Index("batch_open_idx", "backfill", "scope", postgresql_where=text("state = 'open'")),
    )

    fence: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    backfill: Mapped[UUID] = mapped_column(PG_UUID)
    scope: Mapped[str] = mapped_column(Key)
    job_name: Mapped[str] = mapped_column(Text)
    job_uid: Mapped[str | None] = mapped_column(Text)
    template_digest: Mapped[str] = mapped_column(Text)
    login: Mapped[str | None] = mapped_column(Text)
    reporting: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    state: Mapped[str] = mapped_column(Key, server_default="open")
    partitions: Mapped[int] = mapped_column(Integer)
    opened_at: Mapped[datetime] = mapped_column(Time, server_default=func.now())
    closed_at: Mapped[datetime | None] = mapped_column(Time)
    outcome: Mapped[str | None] = mapped_column(Text)


class Attempt(Base):
    """A charged failure of one partition; rows are only ever added."""

    __tablename__ = "attempt"
    __table_args__ = (Index("attempt_backfill_idx", "backfill"),)

    scope: Mapped[str] = mapped_column(Key, primary_key=True)
    asset: Mapped[str] = mapped_column(Key, primary_key=True)
    partition: Mapped[str] = mapped_column(Key, primary_key=True)
    backfill: Mapped[UUID] = mapped_column(PG_UUID, primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer)
    failed_at: Mapped[datetime] = mapped_column(Time, server_default=func.now())
    error: Mapped[str | None] = mapped_column(Text)


class Latest(Base):
    """The last success of each partition over all backfills; a trigger writes it, retention never prunes it."""

    __tablename__ = "latest"

    scope: Mapped[str] = mapped_column(Key, primary_key=True)
    asset: Mapped[str] = mapped_column(Key, primary_key=True)
    partition: Mapped[str] = mapped_column(Key, primary_key=True)
    succeeded_at: Mapped[datetime] = mapped_column(Time)
    code_version: Mapped[str | None] = mapped_column(Text)
    backfill: Mapped[UUID] = mapped_column(PG_UUID)
    fence: Mapped[int] = mapped_column(BigInteger)


class LoginScope(Base):
    """Which scope a login works in; every policy of a scope's rows reads this table and nothing else."""

    __tablename__ = "login_scope"
    __table_args__ = (
        UniqueConstraint("scope", "slot"),
        CheckConstraint("slot IN ('a', 'b')", name="slot"),
    )

    role_name: Mapped[str] = mapped_column(Key, primary_key=True)
    role_oid: Mapped[int] = mapped_column(OID)
    scope: Mapped[str] = mapped_column(Key)
    slot: Mapped[str] = mapped_column(Key)
    tenant_id: Mapped[str | None] = mapped_column(Key)
    created_at: Mapped[datetime] = mapped_column(Time, server_default=func.now())


class ClusterLimit(Base):
    """One row per cluster, locked by every claim, so that the operator's cap is counted by one claim at a time."""

    __tablename__ = "cluster_limit"

    cluster: Mapped[str] = mapped_column(Key, primary_key=True)


class Compatibility(Base):
    """The one row that tells an older replica whether it may go on beside newer ones."""

    __tablename__ = "compatibility"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[bool] = mapped_column(Boolean, primary_key=True, server_default=text("true"))
    min_operator: Mapped[int] = mapped_column(Integer)


class MigrationLock(Base):
    """Locked by whoever migrates; nobody but the owner may lock it, which no advisory lock can promise."""

    __tablename__ = "migration_lock"

    singleton: Mapped[bool] = mapped_column(Boolean, primary_key=True)
