"""The reconcile of one Tenant: look, decide, act, look again, report. The only asynchronous story of this package.

It may be killed between any two lines; `changes` says why that does no harm. The lease merely keeps two replicas from
doing the same work twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from psycopg.conninfo import make_conninfo

from flowstone.backfill.secret import Endpoint
from flowstone.db.ledger import Ledger
from flowstone.db.logins import try_login
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.tenant_catalogue import TenantCatalogue, View
from flowstone.db.tenant_purge import TenantPurge
from flowstone.db.tenant_steps import TenantSteps
from flowstone.errors import (
    ExportFailed,
    FlowStoneError,
    InvalidSpec,
    KubernetesRefused,
    KubernetesUnavailable,
    LedgerBusy,
    LedgerError,
    LedgerRefused,
    LedgerUnavailable,
    TenantRefused,
)
from flowstone.kube.event import Told, event, post
from flowstone.kube.paths import API_VERSION, core, custom
from flowstone.kube.status import apply_status
from flowstone.telemetry import Logger
from flowstone.tenant import status
from flowstone.tenant.changes import Decision, Ending, Problem, decide
from flowstone.tenant.desired import APART, FINALIZER, Desired, parse_tenant
from flowstone.tenant.observed import Observed, OwnDatabase, Registration, Secret
from flowstone.tenant.own_database import Names
from flowstone.tenant.secret import manifest, read
from flowstone.tenant.steps import REPAIRS, Change, DeleteSecrets, Export, Issue, Purge, Record, Register, WriteSecrets

P = ParamSpec("P")
T = TypeVar("T")
Json = dict[str, Any]

ROUNDS = 6
"""Times that a reconcile looks again after it has acted, before it lets the queue call it back."""

SOON = 1.0
"""Seconds until a tenant that is not as it should be yet is looked at again."""

_FULL = "too many connections for role"
"""The server says so after it has checked the password."""


class Platform(Protocol):
    """What a tenant needs of Kubernetes; `flowstone.kube.client.Kube` is one."""

    async def get(self, path: str) -> Json | None:
        """Read one object; None when it is not there."""
        ...

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Read all objects that match."""
        ...

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = ...) -> Json:
        """Server-side apply."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> Json:
        """Create an object."""
        ...

    async def delete(self, path: str, *, uid: str | None = None) -> None:
        """Delete an object; one that is not there is fine."""
        ...


@dataclass(frozen=True, slots=True)
class TenantEnvironment:
    """All that a reconcile needs of the world; the composition root fills it.

    Attributes:
        login_conninfo: Where the operator itself reaches Postgres; a tenant's login is tried there.
        endpoint: Where pods reach Postgres.
        verdicts: Returns the present findings about hardening and isolation.
        drift_shown: How long a status tells of drift that was put right; the next look after that takes it back.
        ending: How tenants end in this installation; as `Ending` has it when left out.
        owner: This replica, as the owner of leases.
        resync: Seconds until a tenant is looked at again though nothing happened.
    """

    kube: Platform
    ledger: Ledger
    catalogue: TenantCatalogue
    steps: TenantSteps
    purge: TenantPurge
    databases: OwnDatabases
    cluster: str
    owner: str
    login_conninfo: str
    endpoint: Endpoint
    verdicts: Callable[[], Awaitable[status.Findings]]
    new_password: Callable[[], str]
    now: Callable[[], datetime]
    log: Logger
    ending: Ending | None = None
    drift_shown: timedelta = timedelta(seconds=60)
    resync: float = 60.0
    lease_seconds: float = 15.0


class TenantReconciler:
    """Moves one Tenant, its logins, its rows and its Secrets towards each other."""

    def __init__(self, environment: TenantEnvironment) -> None:
        self._env = environment

    async def __call__(self, namespace: str, name: str) -> float | None:
        """Reconcile a Tenant; returns the seconds until it is wanted back, or None.

        Args:
            namespace: Empty: a Tenant is in none.
            name: Its metadata.name.
        """
        resource = await self._env.kube.get(custom("tenants", None, name))
        return None if resource is None else await _Reconcile(self._env, resource).run()


class _LeasedError(Exception):
    """Another replica has this tenant."""


class _Reconcile:
    """One pass over one Tenant."""

    def __init__(self, env: TenantEnvironment, resource: Json) -> None:
        self._env = env
        self._resource = resource
        self._log = env.log.bind(tenant=resource["metadata"]["name"])
        self._drift: list[str] = []
        self._own: OwnDatabase | None = None
        self._tried: set[Change] = set()

    async def run(self) -> float | None:
        try:
            return await self._run()
        except _LeasedError:
            return self._env.lease_seconds / 2
        except LedgerBusy:
            return SOON

    async def _run(self) -> float | None:
        try:
            desired = parse_tenant(self._resource, self._env.cluster)
        except InvalidSpec as error:
            await self._report(Decision(problem=Problem("InvalidSpec", str(error))))
            return None
        if not desired.abandoned and not await self._hold():
            return SOON
        try:
            decision = await self._advance(desired)
        except (ExportFailed, LedgerError, TenantRefused, KubernetesRefused, KubernetesUnavailable) as error:
            return await self._failed(error)
        if decision.over:
            await self._let_go()
            return None
        written = await self._report(decision)
        return self._env.resync if written and (not decision.changes or self._stuck(decision)) else SOON

    async def _failed(self, error: FlowStoneError) -> float:
        self._log.warning("tenant_step_failed", error=str(error))
        if isinstance(error, TenantRefused):
            await self._report(Decision(problem=Problem("IdTaken", str(error))))
            return self._env.resync
        if isinstance(error, LedgerBusy):
            raise error
        await self._report(Decision(), failed=str(error))
        return self._env.lease_seconds

    async def _advance(self, desired: Desired) -> Decision:
        """Look, decide and act until nothing is left to do."""
        if not desired.abandoned:
            await _thread(self._env.ledger.check_schema)
        decision = Decision(over=True)
        for _ in range(ROUNDS):
            observed = await self._look(desired)
            decision = decide(desired, observed, spec_changed=self._spec_changed(desired), ending=self._env.ending)
            self._drift += decision.drift
            untried = [change for change in decision.changes if change not in self._tried]
            if not untried:
                break
            await self._act(desired, observed, untried)
        return decision

    def _stuck(self, decision: Decision) -> bool:
        """Whether all that is left to do was tried in vain."""
        return bool(decision.changes) and all(change in self._tried for change in decision.changes)

    def _spec_changed(self, desired: Desired) -> bool:
        return (self._resource.get("status") or {}).get("observedGeneration") != desired.generation

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _look(self, desired: Desired) -> Observed:
        if desired.abandoned:
            return Observed(None, self._env.now())
        view = await _thread(
            self._env.catalogue.view,
            desired.tenant_id,
            desired.scope,
            statement_timeout=desired.statement_timeout if desired.existence == "present" else 0,
        )
        row = view.registration
        namespaces = sorted({*desired.namespaces, *(row.namespaces if row else ())})
        self._own = await self._own_database(desired, view)
        secrets = {name: await self._secret(desired, name, row) for name in namespaces}
        return Observed(
            registration=row,
            now=view.now,
            owner_lives=await self._owner_lives(desired, row.resource_uid if row else None),
            logins=view.logins,
            secrets=secrets,
            works=await self._try(desired, view, secrets.values()),
            oldest_batch=view.oldest_batch,
            strangers=view.strangers,
            schema_exists=view.schema_exists,
            database=self._own,
        )

    async def _own_database(self, desired: Desired, view: View) -> OwnDatabase | None:
        """Look at the tenant's own database; only from outside when the tenant is to end."""
        row = view.registration
        if row is None or row.role_base is None or row.isolation != APART:
            return None
        names = Names(row.role_base, tuple(one.role_name for one in view.logins.values() if one.exists))
        return await _thread(partial(self._env.databases.look, inside=desired.existence == "present"), names)

    def _endpoint(self, desired: Desired, base: str | None) -> Endpoint:
        """Where the tenant's credentials lead."""
        return replace(self._env.endpoint, database=base) if desired.apart and base else self._env.endpoint

    async def _secret(self, desired: Desired, namespace: str, row: Registration | None) -> Secret:
        found = await self._env.kube.get(core("secrets", namespace, desired.secret_name))
        if found is None and await self._env.kube.get(core("namespaces", None, namespace)) is None:
            return Secret(namespace, "gone")
        return read(desired, namespace, found, self._endpoint(desired, row.role_base if row else None))

    async def _owner_lives(self, desired: Desired, owner: str | None) -> bool:
        """Whether the resource that the registry's row belongs to is another one that is still there."""
        if owner in (None, desired.uid):
            return False
        tenants = await self._env.kube.list(custom("tenants"))
        return any(one["metadata"]["uid"] == owner for one in tenants)

    async def _try(self, desired: Desired, view: View, secrets: Any) -> dict[tuple[str, str], bool]:
        """Try the credentials that Secrets hold for logins of this tenant; a drifted password shows in no catalogue."""
        names = {login.role_name for login in view.logins.values() if login.exists and login.can_login}
        held = {secret.credentials for secret in secrets if secret.credentials and secret.role_name in names}
        return {one: await _thread(self._works, desired, *one) for one in held}

    def _works(self, desired: Desired, role_name: str, password: str) -> bool:
        own = {"dbname": role_name.rsplit("_", 1)[0]} if desired.apart else {}
        try:
            return try_login(make_conninfo(self._env.login_conninfo, user=role_name, password=password, **own))
        except LedgerUnavailable as error:
            if _FULL in str(error):
                return True
            raise

    # -- acting -------------------------------------------------------------------------------------------------------

    async def _act(self, desired: Desired, observed: Observed, changes: Sequence[Change]) -> None:
        await self._lease(desired, observed)
        base = observed.registration.role_base if observed.registration else None
        for change in changes:
            self._log.info("tenant_step", step=type(change).__name__)
            match change:
                case Register():
                    await _thread(self._env.steps.apply, change, desired, base)
                    return  # its role names are known only now
                case Issue():
                    await self._issue(desired, observed, f"{base}_{change.slot}", change)
                case WriteSecrets(slot, password, namespaces):
                    await self._write(desired, f"{base}_{slot}", password, namespaces)
                case DeleteSecrets(namespaces):
                    await self._delete(desired, observed, namespaces)
                case Export() | Purge():
                    await _thread(self._env.purge.apply, change, desired, observed)
                case _:
                    await self._step(change, desired, base)

    async def _step(self, change: Change, desired: Desired, base: str | None) -> None:
        """Do one step in the database; a repair that is refused does not hold up the others."""
        if not isinstance(change, REPAIRS):
            return await _thread(self._env.steps.apply, change, desired, base)
        self._tried.add(change)
        try:
            await _thread(self._env.steps.apply, change, desired, base)
        except LedgerRefused as error:
            self._log.warning("tenant_repair_refused", step=type(change).__name__, error=str(error))
        return None

    async def _lease(self, desired: Desired, observed: Observed) -> None:
        if observed.registration is None:
            return  # registering is idempotent, and there is no row yet to lease
        if not await _thread(self._env.steps.take_lease, desired.tenant_id, self._env.owner, self._env.lease_seconds):
            raise _LeasedError

    async def _issue(self, desired: Desired, observed: Observed, role_name: str, change: Issue) -> None:
        """Make a password; whichever of login and Secrets comes first, nobody is ever sent to a closed door."""
        password = self._env.new_password()
        writable = [n for n in desired.namespaces if observed.secrets[n].state in ("absent", "ours")]
        if change.standby:
            await _thread(self._env.steps.set_password, role_name, password)
            if not await _thread(self._works, desired, role_name, password):
                raise LedgerUnavailable("the fresh credentials are not accepted: is the login allowed in pg_hba.conf?")
            await self._write(desired, role_name, password, writable)
        else:
            await self._write(desired, role_name, password, writable)
            await _thread(self._env.steps.set_password, role_name, password)
        active = Record({"active_slot": change.slot, "rotated_at": observed.now})
        await _thread(self._env.steps.apply, active, desired, role_name.rsplit("_", 1)[0])

    async def _write(self, desired: Desired, role_name: str, password: str, namespaces: Sequence[str]) -> None:
        for namespace in namespaces:
            body = manifest(
                desired, namespace, role_name, password, self._endpoint(desired, role_name.rsplit("_", 1)[0])
            )
            await self._env.kube.apply(core("secrets", namespace, desired.secret_name), body)

    async def _delete(self, desired: Desired, observed: Observed, namespaces: Sequence[str]) -> None:
        for namespace in namespaces:
            if observed.secrets[namespace].state == "ours":
                await self._env.kube.delete(core("secrets", namespace, desired.secret_name))

    # -- the resource -------------------------------------------------------------------------------------------------

    async def _hold(self) -> bool:
        """Make sure that the finalizer is there before anything is made; False when the resource changed meanwhile."""
        metadata = self._resource["metadata"]
        if FINALIZER in (metadata.get("finalizers") or []) or "deletionTimestamp" in metadata:
            return True
        return await self._finalizers([FINALIZER])

    async def _let_go(self) -> None:
        if FINALIZER in (self._resource["metadata"].get("finalizers") or []):
            await self._finalizers([])
            self._log.info("tenant_let_go")

    async def _finalizers(self, finalizers: list[str]) -> bool:
        """Apply the one field of the resource that is ours besides the status."""
        metadata = self._resource["metadata"]
        body = {
            "apiVersion": API_VERSION,
            "kind": "Tenant",
            "metadata": {
                "name": metadata["name"],
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": finalizers,
            },
        }
        try:
            self._resource = await self._env.kube.apply(custom("tenants", None, metadata["name"]), body)
        except KubernetesRefused as refused:
            if refused.status in (404, 409):
                return False
            raise
        return True

    async def _report(self, decision: Decision, failed: str = "") -> bool:
        """Write the status when it differs; False when the resource changed meanwhile."""
        found = status.agreed(await self._env.verdicts(), self._own, self._resource)
        stuck = self._stuck(decision)
        outcome = status.Outcome(decision, tuple(self._drift), failed, stuck, found.hardened, found.isolated)
        old = self._resource.get("status") or {}
        generation, now = self._resource["metadata"]["generation"], self._env.now()
        new = status.compose(outcome, generation, old, now, shown=self._env.drift_shown)
        if new == {key: old.get(key) for key in new}:
            return True
        written = await apply_status(self._env.kube, "tenants", self._resource, new)
        if written:
            await self._tell(status.news(old, new))
        return written

    async def _tell(self, drift: str) -> None:
        """Tell by an Event of what was changed by hand, for those who look later."""
        if not drift:
            return
        told = Told("Warning", "CredentialDrift", drift)
        body = event("Tenant", self._resource["metadata"], told, instance=self._env.owner, now=self._env.now())
        await post(self._env.kube, self._log, body)


async def _thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.to_thread(function, *args, **kwargs)
