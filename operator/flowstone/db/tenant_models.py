"""The tenants' tables, as SQLAlchemy sees them; Alembic compares the database with this module and `models.py`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from flowstone.db.models import Base, Key, Time


class Tenant(Base):
    """The registry: one row per tenant, kept as a tombstone after a purge, so that nobody inherits its name.

    A tenant's id is unique in the database, also over clusters: tenants' tables are keyed by it alone.
    `role_base` is random and never used again; `active_slot` says which of its two logins the Secrets hold.
    `database_made_at` says that its own database was there once, so that a lost one is not replaced by an empty one.
    `lease_owner` and `lease_until` keep two replicas from working on the same tenant at once.
    """

    __tablename__ = "tenant"
    __table_args__ = (
        UniqueConstraint("tenant_id"),
        UniqueConstraint("scope"),
        UniqueConstraint("role_base"),
        CheckConstraint("tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'", name="id"),
        CheckConstraint("scope = 't/' || cluster || '/' || tenant_id", name="scope"),
        CheckConstraint("tier IN ('basic', 'standard', 'premium', 'enterprise')", name="tier"),
        CheckConstraint("isolation IN ('Shared', 'Schema', 'Database')", name="isolation"),
        CheckConstraint("state IN ('active', 'suspended', 'purged')", name="state"),
        CheckConstraint("max_parallel > 0", name="max_parallel"),
        CheckConstraint("active_slot IN ('a', 'b')", name="slot"),
    )

    cluster: Mapped[str] = mapped_column(Key, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Key, primary_key=True)
    scope: Mapped[str] = mapped_column(Key)
    resource_uid: Mapped[str | None] = mapped_column(Text)
    tier: Mapped[str] = mapped_column(Key, server_default="basic")
    isolation: Mapped[str] = mapped_column(Key, server_default="Shared")
    state: Mapped[str] = mapped_column(Key, server_default="active")
    max_parallel: Mapped[int | None] = mapped_column(Integer)
    namespaces: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    role_base: Mapped[str | None] = mapped_column(Key)
    active_slot: Mapped[str | None] = mapped_column(Key)
    rotated_at: Mapped[datetime | None] = mapped_column(Time)
    rotate_token: Mapped[str] = mapped_column(Text, server_default="")
    revoked_at: Mapped[datetime | None] = mapped_column(Time)
    created_at: Mapped[datetime] = mapped_column(Time, server_default=func.now())
    suspended_at: Mapped[datetime | None] = mapped_column(Time)
    retain_until: Mapped[datetime | None] = mapped_column(Time)
    export_digest: Mapped[str | None] = mapped_column(Text)
    purged_at: Mapped[datetime | None] = mapped_column(Time)
    lease_owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None] = mapped_column(Time)
    database_made_at: Mapped[datetime | None] = mapped_column(Time)


class ContextKey(Base):
    """What signed contexts are checked with: HMAC's two padded blocks of one key, or of two while one is rotated.

    Only the owner may read it, and so only `context_scope()` does.
    """

    __tablename__ = "context_key"
    __table_args__ = (
        CheckConstraint("slot IN (1, 2)", name="slot"),
        CheckConstraint("octet_length(inner_pad) = 64", name="inner"),
        CheckConstraint("octet_length(outer_pad) = 64", name="outer"),
    )

    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    inner_pad: Mapped[bytes] = mapped_column(LargeBinary)
    outer_pad: Mapped[bytes] = mapped_column(LargeBinary)


class Canary(Base):
    """Rows of the two canaries, tenants that nobody is: the proof of isolation sets one of them at the other's rows.

    A table as `op.tenant_table` makes them, with each kind of key through which one tenant could learn of another.
    """

    __tablename__ = "canary"
    __table_args__ = (
        CheckConstraint("tenant_id ^@ 'flowstone-canary-'", name="tenant_id"),
        UniqueConstraint("tenant_id", "note"),
        ForeignKeyConstraint(
            ["tenant_id", "parent"],
            ["flowstone.canary.tenant_id", "flowstone.canary.id"],
            name="canary_parent_fkey",
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Key, primary_key=True, server_default=text("flowstone.tenant_id()"))
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    parent: Mapped[int | None] = mapped_column(BigInteger)
    note: Mapped[str] = mapped_column(Key)


class Proof(Base):
    """What the last proof of isolation found, one row per cluster, for all replicas alike.

    `fingerprint` is that of the catalogue it was made on; `open` names what did not hold, `admitted` what `Hardened`
    already says is open, `skipped` what could not be tried.
    """

    __tablename__ = "proof"

    cluster: Mapped[str] = mapped_column(Key, primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(Text)
    proven_at: Mapped[datetime] = mapped_column(Time)
    checks: Mapped[int] = mapped_column(Integer)
    open: Mapped[list[str]] = mapped_column(ARRAY(Text))
    admitted: Mapped[list[str]] = mapped_column(ARRAY(Text))
    skipped: Mapped[list[str]] = mapped_column(ARRAY(Text))
