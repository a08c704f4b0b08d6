"""The tenants of a Backfill on this machine: those of the ledger's registry, judged by the installed guards."""

from __future__ import annotations

from flowstone.api.parse import AssetResource, BackfillResource
from flowstone.backfill.plan import is_for_tenants, require_known, wanted_tenants
from flowstone.backfill.tenancy import Admission, admit
from flowstone.db.ledger import Ledger
from flowstone.db.tenants import TenantRegistry
from flowstone.guard import Guards
from flowstone.local import known_tenant


class LocalTenants:
    """The registry's tenants.

    Args:
        create: Register those that a Backfill names and nobody knows; for the database that comes along.
    """

    def __init__(self, ledger: Ledger, guards: Guards, *, cluster: str, create: bool) -> None:
        self._registry = TenantRegistry(ledger.database, cluster)
        self._guards = guards
        self._create = create

    def usable(self) -> tuple[str, ...]:
        """Ids of the tenants that may work."""
        return tuple(row.tenant_id for row in self._registry.all_active())

    def judge(self, backfill: BackfillResource, asset: AssetResource) -> Admission:
        """Judge the tenants that a Backfill names, or all where it names none.

        Raises:
            TenantUnknown: One of them is not registered.
            TenantRefused: A text that is no tenant's id.
        """
        if not is_for_tenants(asset.spec, backfill.spec):
            return Admission()
        wanted = wanted_tenants(asset.spec, backfill.spec, self.usable())
        for tenant_id in wanted if self._create else ():
            self._registry.register(tenant_id)
        known = {row.tenant_id: known_tenant(row, backfill.namespace) for row in self._registry.all_active()}
        require_known(wanted, known)
        return admit(asset, wanted, known, self._guards)
