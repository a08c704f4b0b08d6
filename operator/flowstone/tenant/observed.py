"""What there is of a tenant: in the registry, in the server's catalogue, in its namespaces' Secrets. Pure values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Slot = Literal["a", "b"]
TenantState = Literal["active", "suspended", "purged"]

OTHER: Mapping[Slot, Slot] = {"a": "b", "b": "a"}
"""The other one of a tenant's two logins."""


NOT_EXPORTED = "not exported: no place for exports is configured (chart value tenants.deletion.exportClaim)"


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of the rows of a tenant that is to end.

    Attributes:
        digest: SHA-256 of the file; without one, of the rows, as evidence of what was deleted.
        file: Its name in the folder for exports; empty when there is none.
        retain_until: When the rows may be deleted.
    """

    digest: str
    file: str
    retain_until: datetime

    @property
    def noted(self) -> str:
        """The registry's text for file and digest."""
        return f"{self.file}:{self.digest}" if self.file else self.digest


@dataclass(frozen=True, slots=True)
class Registration:
    """The tenant's row in the registry.

    Attributes:
        resource_uid: Uid of the resource it belongs to; None for one that a Python program registered.
        role_base: Random name of its schema or database; never used again.
        active_slot: Which login the Secrets hold; None before the first.
        namespaces: Where Secrets may be; noted before the first is written there.
        rotated_at: When `active_slot` became the active one.
        rotate_token: The last request for fresh credentials that was met.
        revoked_at: A namespace was taken away then, and what it knows is still good.
        retain_until: When rows that are to be purged may be.
        database_made_at: When its own database was there first; one that is gone since then was lost with its rows.
    """

    tenant_id: str
    tier: str
    isolation: str
    state: TenantState
    max_parallel: int | None
    resource_uid: str | None
    role_base: str | None
    active_slot: Slot | None
    namespaces: tuple[str, ...]
    rotated_at: datetime | None
    rotate_token: str
    revoked_at: datetime | None
    suspended_at: datetime | None
    retain_until: datetime | None
    export_digest: str | None
    purged_at: datetime | None
    database_made_at: datetime | None = None

    @property
    def exported(self) -> Exported | None:
        """What became of its rows, once that is decided."""
        if self.export_digest is None or self.retain_until is None:
            return None
        file, _, digest = self.export_digest.rpartition(":")
        return Exported(digest, file, self.retain_until)


@dataclass(frozen=True, slots=True)
class Login:
    """One of a tenant's logins, as the catalogue has it.

    Attributes:
        exists: The role is there under the OID that was recorded; a stranger of the same name is none.
        mapped: `login_scope` leads it to this tenant.
        attributes: Words such as SUPERUSER that it must not have.
        groups: Roles it is a member of.
        members: Roles that are members of it.
        settings: What `ALTER ROLE ... SET` left for all databases.
        databases: Databases in which it has settings of their own.
        expires: It has a VALID UNTIL.
        sessions: Sessions open now.
        late: Process ids whose statement runs longer than the tenant may.
    """

    role_name: str
    slot: Slot
    exists: bool
    mapped: bool
    can_login: bool
    connection_limit: int
    attributes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    databases: frozenset[str] = frozenset()
    expires: bool = False
    sessions: int = 0
    late: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Secret:
    """The Secret of one namespace.

    Attributes:
        state: `absent`; `ours`; `foreign`: somebody else's of that name; `gone`: the namespace is not there.
        role_name: The login it holds; empty when it holds none.
        current: All of its other content is as it should be.
    """

    namespace: str
    state: Literal["absent", "ours", "foreign", "gone"]
    role_name: str = ""
    password: str = field(default="", repr=False)
    current: bool = False

    @property
    def credentials(self) -> tuple[str, str] | None:
        """Login and password, if it holds both."""
        return (self.role_name, self.password) if self.role_name and self.password else None


@dataclass(frozen=True, slots=True)
class OwnDatabase:
    """The database of a tenant of isolation Database.

    Attributes:
        exists: It is there.
        open: What about it is not as it should be, in words; what was not looked at is not among them.
    """

    exists: bool
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """All that there is of a tenant.

    Attributes:
        owner_lives: Another Tenant resource, to which the registry's row belongs, is still there.
        works: Whether Postgres lets these credentials in, by (login, password).
        oldest_batch: When the oldest open batch of the tenant was handed out.
        strangers: Role names that lead to this tenant's rows and are none of its logins.
        schema_exists: The schema of isolation Schema is there and is the operator's.
        database: The database of isolation Database; None for the other modes, or before the tenant is registered.
        now: The server's clock.
    """

    registration: Registration | None
    now: datetime
    owner_lives: bool = False
    logins: Mapping[Slot, Login] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    works: Mapping[tuple[str, str], bool] = field(default_factory=dict, repr=False)
    oldest_batch: datetime | None = None
    strangers: frozenset[str] = frozenset()
    schema_exists: bool = False
    database: OwnDatabase | None = None
