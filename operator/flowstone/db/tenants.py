"""The registry of tenants: one row per tenant of a cluster, never deleted, so that nobody inherits a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowstone.db.connection import Database, Transaction
from flowstone.errors import TenantRefused, TenantUnknown
from flowstone.tenant.capability import checked_tenant_id

TenantState = Literal["active", "suspended", "purged"]


@dataclass(frozen=True, slots=True)
class TenantRow:
    """What the registry knows of a tenant.

    Attributes:
        state: `active`; `suspended` when its resource was deleted and its rows are kept; `purged` when they are gone.
    """

    cluster: str
    tenant_id: str
    scope: str
    tier: str
    isolation: str
    state: TenantState
    max_parallel: int | None


NO_TENANT = (
    "no active tenant of this id is registered for this cluster id: apply a Tenant, see whether it is suspended, or "
    "name the operator's cluster id by cluster= or FLOWSTONE_CLUSTER_ID; a Python program registers new ones with "
    "FlowStone.connect(..., create_tenants=True)"
)

_COLUMNS = "cluster, tenant_id, scope, tier, isolation, state, max_parallel"

_REGISTER = """
    INSERT INTO flowstone.tenant (cluster, tenant_id, scope, tier)
    VALUES (%(cluster)s, %(tenant)s, 't/' || %(cluster)s || '/' || %(tenant)s, %(tier)s)
    ON CONFLICT DO NOTHING
"""


class TenantRegistry:
    """The registry, as the operator's login sees it.

    Args:
        database: The ledger's, as in `ledger.database`.
        cluster: The cluster whose tenants these are.
    """

    def __init__(self, database: Database, cluster: str) -> None:
        self._database = database
        self._cluster = cluster

    def find(self, tenant_id: str) -> TenantRow | None:
        """Return the tenant's row, or None."""
        with self._database.transaction() as tx:
            return _find(tx, self._cluster, tenant_id)

    def active(self, tenant_id: str) -> TenantRow:
        """Return the row of a tenant that may work.

        Raises:
            TenantUnknown: It is not registered, or suspended, or purged.
        """
        row = self.find(tenant_id)
        if row is None or row.state != "active":
            raise TenantUnknown(NO_TENANT)
        return row

    def all_active(self) -> list[TenantRow]:
        """Return the rows of all tenants that may work, by id."""
        query = f"SELECT {_COLUMNS} FROM flowstone.tenant WHERE cluster = %(cluster)s AND state = 'active' ORDER BY 2"  # noqa: S608 - constants
        with self._database.transaction() as tx:
            return [TenantRow(*row) for row in tx.rows(query, {"cluster": self._cluster})]

    def register(self, tenant_id: str, tier: str = "basic") -> TenantRow:
        """Register a tenant, unless it is there; either way return what is there.

        Raises:
            TenantRefused: This is no id that a tenant can have, or another cluster that shares this database has a
                tenant of that id.
        """
        checked_tenant_id(tenant_id)
        with self._database.transaction() as tx:
            tx.run(_REGISTER, {"cluster": self._cluster, "tenant": tenant_id, "tier": tier})
            row = _find(tx, self._cluster, tenant_id)
        if row is None:
            raise TenantRefused(
                "another cluster that shares this database has a tenant of this id: choose another id, or give the "
                "clusters databases of their own"
            )
        return row


def _find(tx: Transaction, cluster: str, tenant_id: str) -> TenantRow | None:
    query = f"SELECT {_COLUMNS} FROM flowstone.tenant WHERE cluster = %(cluster)s AND tenant_id = %(tenant)s"  # noqa: S608 - constants
    row = tx.row(query, {"cluster": cluster, "tenant": tenant_id})
    return TenantRow(*row) if row else None
