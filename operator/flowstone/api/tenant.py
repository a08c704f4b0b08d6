"""Tenant: an organisation whose rows, role, credentials and quota are kept apart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictInt

from flowstone.api.base import Instant, Model, StatusModel
from flowstone.api.conditions import Conditions
from flowstone.api.rules import frozen, kept, validations
from flowstone.api.text import Identifier

_NEW_TENANT = "rows and credentials belong to it; create another Tenant"

NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern="^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]


class Limits(Model):
    """How much of the shared resources the tenant may use."""

    connections: Annotated[StrictInt, Field(ge=1, le=10_000)] = 20
    """Connections that each of the tenant's logins may hold at once."""

    statement_timeout_seconds: Annotated[StrictInt, Field(ge=0, le=86_400)] = 0
    """Seconds after which the operator ends a statement; 0 means never."""

    max_parallel: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    """Open batches of all the tenant's Backfills at most; unset means no limit of its own."""


class Credentials(Model):
    """How the tenant's credentials are kept fresh."""

    rotate_every_days: Annotated[StrictInt, Field(ge=1, le=3_650)] = 30
    """Days after which the operator changes to the other login."""


class TenantSpec(Model):
    """Who the tenant is, and how far it is kept apart."""

    model_config = ConfigDict(
        json_schema_extra=validations(frozen("id", _NEW_TENANT), kept("isolation", "Database", _NEW_TENANT))
    )

    id: Identifier | None = None
    """The tenant's name in rows, keys and Python, such as `tenant_a`; unset means metadata.name. Immutable."""

    tier: Literal["basic", "standard", "premium", "enterprise"] = "basic"
    """The tenant's tier; guards compare it with the tier that an Asset requires."""

    namespaces: Annotated[
        tuple[NamespaceName, ...],
        Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """Namespaces that may use the tenant; the Secret with its credentials is put into each."""

    isolation: Literal["Shared", "Schema", "Database"] = "Shared"
    """Where its rows live: in shared tables under row level security, in a schema, or in a database of its own.

    A Tenant stays with Database, or without.
    """

    limits: Limits = Limits()
    """How much of the shared resources the tenant may use."""

    credentials: Credentials = Credentials()
    """How the tenant's credentials are kept fresh."""

    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What becomes of the rows when the Tenant is deleted; Delete needs `confirmDeletion`."""

    confirm_deletion: Identifier | None = None
    """The tenant's id once more, so that rows are never deleted by a slip."""


class TenantExport(StatusModel):
    """What became of the rows of a tenant whose deletion is confirmed."""

    file: Annotated[str, Field(max_length=253)] | None = None
    """The file with all of its rows, in the folder for exports; unset when there is none."""

    not_exported: Annotated[str, Field(max_length=253)] | None = None
    """Why there is no file."""

    digest: Annotated[str, Field(max_length=71)] = ""
    """SHA-256 of the file; without one, of the rows, as evidence of what is deleted."""

    retain_until: Instant | None = None
    """When the rows are deleted from the database."""


class TenantStatus(StatusModel):
    """What the operator last saw of the tenant."""

    observed_generation: Annotated[StrictInt, Field(ge=-1)] = -1
    """The metadata.generation that this status is about; -1 before the operator has seen the Tenant."""

    conditions: Conditions = ()
    """Ready, Reconciling, Stalled, Hardened, IsolationVerified and CredentialDrift."""

    export: TenantExport | None = None
    """What became of the rows, once the deletion of the Tenant is confirmed."""
