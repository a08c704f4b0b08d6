"""The kinds of resource: their names, scopes, columns and models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowstone.api.asset import AssetSpec, AssetStatus
from flowstone.api.backfill import BackfillSpec
from flowstone.api.backfill_status import BackfillStatus
from flowstone.api.base import GROUP, Model, StatusModel
from flowstone.api.rules import Rule
from flowstone.api.tenant import TenantSpec, TenantStatus


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; `wide` ones appear with `-o wide` only."""

    name: str
    type: Literal["string", "integer", "date"]
    path: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of custom resource.

    Attributes:
        rules: CEL rules over the whole resource, for what concerns its name.
    """

    name: str
    plural: str
    short: str
    scope: Literal["Namespaced", "Cluster"]
    description: str
    spec: type[Model]
    status: type[StatusModel]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()

    @property
    def singular(self) -> str:
        """The kind's name in a command line."""
        return self.name.lower()

    @property
    def crd_name(self) -> str:
        """The name of its CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


_AGE = Column("Age", "date", ".metadata.creationTimestamp")
_READY = Column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status')
_REASON = Column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason')


def _count(name: str, wide: bool = False) -> Column:
    return Column(name, "integer", f".status.counts.{name.lower()}", wide)


def _short_name_rule(limit: int, unless: str, why: str) -> Rule:
    return Rule(
        f"{unless}self.metadata.name.size() <= {limit}",
        f"metadata.name is too long: {why}",
        f"'metadata.name \"' + self.metadata.name + '\" is too long: {why}'",
    )


BACKFILL = Kind(
    name="Backfill",
    plural="backfills",
    short="bf",
    scope="Namespaced",
    description="A request to materialize an Asset over a set of partitions, worked off as Jobs.",
    spec=BackfillSpec,
    status=BackfillStatus,
    columns=(
        Column("Phase", "string", ".status.phase"),
        _REASON,
        _count("Total"),
        _count("Succeeded"),
        _count("Failed"),
        Column("Progress", "integer", ".status.progress"),
        Column("Asset", "string", ".spec.asset", wide=True),
        _count("Queued", wide=True),
        _count("Running", wide=True),
        Column("Delivery", "string", ".status.delivery", wide=True),
        _AGE,
    ),
    rules=(_short_name_rule(63, "", "use at most 63, because its Jobs carry it as a label"),),
)

ASSET = Kind(
    name="Asset",
    plural="assets",
    short="ast",
    scope="Namespaced",
    description="A named data artifact that is computed one partition at a time.",
    spec=AssetSpec,
    status=AssetStatus,
    columns=(
        Column("Id", "string", ".spec.id"),
        _READY,
        _REASON,
        _AGE,
    ),
    rules=(_short_name_rule(63, "has(self.spec.id) || ", "use at most 63, or set spec.id"),),
)

TENANT = Kind(
    name="Tenant",
    plural="tenants",
    short="ten",
    scope="Cluster",
    description="An organisation whose rows, role, credentials and quota are kept apart.",
    spec=TenantSpec,
    status=TenantStatus,
    columns=(
        Column("Tier", "string", ".spec.tier"),
        Column("Isolation", "string", ".spec.isolation"),
        _READY,
        _REASON,
        _AGE,
    ),
    rules=(
        _short_name_rule(63, "has(self.spec.id) || ", "use at most 63, or set spec.id"),
        Rule(
            "self.spec.deletionPolicy != 'Delete' || (has(self.spec.confirmDeletion) && self.spec.confirmDeletion"
            " == (has(self.spec.id) ? self.spec.id : self.metadata.name))",
            "spec.confirmDeletion is not the tenant's id: write the id there, or use deletionPolicy Retain",
        ),
    ),
)

EXPORTED = (ASSET, BACKFILL, TENANT)
"""The kinds that have a CRD: those whose reconcile exists. Tenant joins them with it."""
