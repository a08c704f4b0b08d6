"""What a Tenant resource asks for. Pure.

    desired -> observed -> changes -> statements -> status

The story of a tenant reads in this order: this module says what is wanted, `observed` what there is, `changes` decides
what to do about the difference, `statements` writes it down as SQL, `status` tells people. `reconcile` goes through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from flowstone.api.parse import parse_meta, validated
from flowstone.api.tenant import TenantSpec
from flowstone.errors import InvalidSpec
from flowstone.tenant.capability import TENANT_ID
from flowstone.tenant.names import CANARY_PREFIX, tenant_scope

ABANDON = "flowstone.dev/abandon"
"""Annotation: a Tenant that is being deleted lets go of its resource without touching the database; the way out."""

ROTATE = "flowstone.dev/rotate"
"""Annotation: another text asks for fresh credentials once, as `flowstone tenant rotate` does."""

FINALIZER = "flowstone.dev/tenant"
"""Holds a Tenant until its logins are stopped."""

SECRET_PREFIX = "flowstone-tenant-"  # noqa: S105 - a name's beginning
"""The Secret with a Tenant's credentials is named after the resource; no template may name one."""

LONGEST_NAME = 63
"""Characters of metadata.name: it is part of a Secret's name and a label."""

APART = "Database"
"""The isolation of a tenant with a database of its own."""

GROUP = "flowstone_tenant"
"""Group with the rights of the logins of tenants whose rows are in the ledger's database."""

APART_GROUP = "flowstone_apart"
"""Group of the logins of tenants with a database of their own; it has no right on anything in the ledger's."""

Existence = Literal["present", "suspended", "purged"]


@dataclass(frozen=True, slots=True)
class Desired:
    """A tenant as it shall be.

    Attributes:
        existence: `present`; `suspended` (logins stop, rows stay); or `purged` (rows go too, after a while).
        abandoned: Let go of the resource, whatever the database says.
        connections: Sessions that each login may hold.
        statement_timeout: Seconds after which a statement is ended; 0 means never.
        rotate_token: A value that was not seen before asks for fresh credentials.
    """

    name: str
    uid: str
    generation: int
    cluster: str
    tenant_id: str
    tier: str
    isolation: str
    namespaces: tuple[str, ...]
    connections: int
    statement_timeout: int
    max_parallel: int | None
    rotate_every: timedelta
    rotate_token: str
    existence: Existence
    abandoned: bool

    @property
    def scope(self) -> str:
        """Whose rows these are."""
        return tenant_scope(self.cluster, self.tenant_id)

    @property
    def apart(self) -> bool:
        """It has a database of its own, and no business in the ledger's."""
        return self.isolation == APART

    @property
    def group(self) -> str:
        """The one role that its logins are members of."""
        return APART_GROUP if self.apart else GROUP

    @property
    def secret_name(self) -> str:
        """Name of the Secret in each of its namespaces."""
        return secret_name(self.name)


def secret_name(name: str) -> str:
    """Return the name of a Tenant's Secret."""
    return f"{SECRET_PREFIX}{name}"


def parse_tenant(resource: Mapping[str, Any], cluster: str) -> Desired:
    """Return what a Tenant resource asks for.

    Args:
        resource: The resource as the API server hands it out.
        cluster: This cluster's id.

    Raises:
        InvalidSpec: The spec passed the schema, if it met it at all, and still makes no sense.
    """
    meta = parse_meta(resource)
    spec = validated(TenantSpec, resource.get("spec"), "spec")
    annotations: Mapping[str, str] = (resource.get("metadata") or {}).get("annotations") or {}
    tenant_id = _tenant_id(meta.name, spec)
    return Desired(
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        cluster=cluster,
        tenant_id=tenant_id,
        tier=spec.tier,
        isolation=spec.isolation,
        namespaces=tuple(sorted(spec.namespaces)),
        connections=spec.limits.connections,
        statement_timeout=spec.limits.statement_timeout_seconds,
        max_parallel=spec.limits.max_parallel,
        rotate_every=timedelta(days=spec.credentials.rotate_every_days),
        rotate_token=annotations.get(ROTATE, "")[:64],
        existence=_existence(spec, tenant_id, meta.deleting),
        abandoned=meta.deleting and ABANDON in annotations,
    )


def _tenant_id(name: str, spec: TenantSpec) -> str:
    if len(name) > LONGEST_NAME:
        raise InvalidSpec("metadata.name", name, f"at most {LONGEST_NAME} characters: it is part of other names")
    tenant_id = spec.id or name
    if not TENANT_ID.fullmatch(tenant_id):
        raise InvalidSpec("metadata.name", name, "no tenant id: set spec.id")
    if tenant_id.startswith(CANARY_PREFIX):
        raise InvalidSpec("spec.id", tenant_id, "reserved for the proof of isolation: choose another")
    return tenant_id


def _existence(spec: TenantSpec, tenant_id: str, deleting: bool) -> Existence:
    if not deleting:
        return "present"
    confirmed = spec.deletion_policy == "Delete" and spec.confirm_deletion == tenant_id
    return "purged" if confirmed else "suspended"
