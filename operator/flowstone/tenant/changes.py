"""What to do about the difference between what is wanted and what there is. Pure.

Invariants:

1. A Secret's password is the truth. It is written before the role may log in, or after the role is known to accept it;
   so whenever a reconcile breaks off, the next one goes on from what the Secrets hold.
2. Of a tenant's two logins one is *active* (the Secrets hold it) and one stands by. Fresh credentials always go to the
   one that stands by, and only when nobody can be using it: it has no session, and every open batch was handed out
   after it had left the Secrets.
3. Revocation goes from the outside in: the registry (pooled contexts), the membership (rows), the sessions that are
   open and could stand in the way, the right to log in, the sessions that came meanwhile.
4. Nothing here is undone by doing it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flowstone.tenant.credentials import credentials, settings
from flowstone.tenant.desired import APART, APART_GROUP, GROUP, Desired
from flowstone.tenant.observed import NOT_EXPORTED, Exported, Login, Observed, Registration, Slot
from flowstone.tenant.steps import (
    Change,
    Configure,
    DeleteSecrets,
    EndSessions,
    EndStatements,
    Expel,
    Export,
    Join,
    Leave,
    Lock,
    MakeDatabase,
    MakeLogin,
    MakeSchema,
    Purge,
    Record,
    Register,
    Remap,
    RestoreDatabase,
    Strip,
    Unmap,
)

OPERATOR = "flowstone_operator"
"""The only member a tenant's login may have: who ends its sessions must be one."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How tenants end.

    Attributes:
        retention: How long a tenant's rows are kept after its confirmed deletion.
        exports: There is a place for the file with its rows.
    """

    retention: timedelta = timedelta(days=7)
    exports: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing can be done before somebody changes something."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and what to say about it.

    Attributes:
        drift: What somebody changed by hand, in words without values.
        waits: Why something that is due is not done yet; empty when nothing is.
        missing: Namespaces that are not there.
        ending: What is known of the end of a tenant whose rows are to go.
        over: The resource may go.
    """

    changes: tuple[Change, ...] = ()
    drift: tuple[str, ...] = ()
    problem: Problem | None = None
    waits: str = ""
    missing: tuple[str, ...] = ()
    ending: Exported | None = None
    over: bool = False


def decide(desired: Desired, observed: Observed, *, spec_changed: bool, ending: Ending | None = None) -> Decision:
    """Decide what moves a tenant towards what is wanted.

    Args:
        desired: What the resource asks for.
        observed: What there is.
        spec_changed: The resource was edited since it was last reconciled, so a difference may be ours to make.
        ending: How tenants end in this installation; as `Ending` has it when left out.
    """
    if desired.abandoned:
        return Decision(over=True)
    if desired.existence != "present":
        return _end(desired, observed, ending or Ending())
    problem = _problem(desired, observed)
    if problem is not None:
        return Decision(problem=problem)
    return _keep(desired, observed, spec_changed)


def _problem(desired: Desired, observed: Observed) -> Problem | None:
    row = observed.registration
    if row is not None and row.state == "purged":
        return Problem("TenantPurged", "a tenant of this id was deleted with its rows: choose another spec.id")
    if row is not None and row.isolation != desired.isolation and APART in (row.isolation, desired.isolation):
        return Problem(
            "IsolationChanged",
            f"spec.isolation: {desired.isolation}: the rows are where isolation {row.isolation} put them: write "
            f"{row.isolation}, or create another Tenant",
        )
    if desired.apart and row is not None and row.database_made_at is not None and _is_lost(observed):
        return Problem("DatabaseLost", f"database {row.role_base} is gone: restore it under this name")
    if row is not None and row.resource_uid not in (None, desired.uid) and observed.owner_lives:
        return Problem(
            "IdTaken", "another Tenant has this id: delete that one, or make this one anew with another spec.id"
        )
    for secret in observed.secrets.values():
        if secret.state == "foreign":
            return Problem(
                "SecretNameTaken",
                f"namespace {secret.namespace} has a Secret {desired.secret_name} that is not this Tenant's: remove it",
            )
    return None


# -- a tenant that is wanted ------------------------------------------------------------------------------------------


def _keep(desired: Desired, observed: Observed, spec_changed: bool) -> Decision:
    row = observed.registration
    changes: list[Change] = [*_register(desired, row, observed.now)]
    drift: list[str] = []
    slots = _wanted_slots(desired, observed)
    for slot in slots:
        login = observed.logins.get(slot)
        if login is None or not login.exists:
            changes.append(MakeLogin(slot, desired.connections, settings(desired, row)))
            if login is not None:
                drift.append("a login was renamed or dropped")
            continue
        repairs, found = _repair(desired, row, login)
        changes += repairs
        drift += [one for one in found if not (spec_changed and one == _LIMITS)]
        if login.late:
            changes.append(EndStatements(slot, login.late))
    for stranger in sorted(observed.strangers):
        changes.append(Unmap(stranger))
        drift.append("a foreign role led to this tenant's rows")
    if desired.isolation == "Schema" and not observed.schema_exists:
        changes.append(MakeSchema(slots))
    if desired.apart:
        repairs, found = _own_database(observed, slots)
        changes += repairs
        drift += found
    secrets, lost, waits = credentials(desired, observed)
    missing = tuple(name for name in desired.namespaces if observed.secrets[name].state == "gone")
    return Decision((*changes, *secrets), (*drift, *lost), waits=waits, missing=missing)


def _register(desired: Desired, row: Registration | None, now: datetime) -> Iterator[Change]:
    """Bring the registry's row up to what is asked for, before anything is done under it."""
    if row is None or row.role_base is None:  # a Python program registers tenants without roles
        yield Register()
        return
    values: dict[str, Any] = {}
    for name in ("tier", "isolation", "max_parallel"):
        if getattr(row, name) != getattr(desired, name):
            values[name] = getattr(desired, name)
    if row.resource_uid != desired.uid:
        values["resource_uid"] = desired.uid
    if row.state != "active":
        values |= {"state": "active", "suspended_at": None, "retain_until": None, "export_digest": None}
    gone = tuple(sorted(set(row.namespaces) - set(desired.namespaces)))
    if set(desired.namespaces) - set(row.namespaces):
        values["namespaces"] = sorted({*row.namespaces, *desired.namespaces})
    if gone:
        values["revoked_at"] = now
        values["namespaces"] = sorted({*row.namespaces, *desired.namespaces})
    if values:
        yield Record(values)
    if gone:
        yield DeleteSecrets(gone)
        yield Record({"namespaces": list(desired.namespaces)})


def _wanted_slots(desired: Desired, observed: Observed) -> tuple[Slot, ...]:
    """Both once both were made; the first one to begin with, unless it makes tables that the other is to use."""
    if desired.isolation != "Shared":
        return ("a", "b")
    active: Slot = (observed.registration.active_slot if observed.registration else None) or "a"
    return tuple(sorted({active, *observed.logins}))


def _is_lost(observed: Observed) -> bool:
    return observed.database is not None and not observed.database.exists


def _own_database(observed: Observed, slots: tuple[Slot, ...]) -> tuple[list[Change], list[str]]:
    """Make the tenant's database, or put right what somebody changed about it; a login made anew has no rights yet."""
    row = observed.registration
    if row is None or row.database_made_at is None:
        return [MakeDatabase(slots), Record({"database_made_at": observed.now})], []
    drift = ["its database was changed"] if observed.database is not None and observed.database.open else []
    missing = [slot for slot in slots if slot not in observed.logins or not observed.logins[slot].exists]
    return ([RestoreDatabase(slots)] if drift or missing else []), drift


_LIMITS = "a limit or setting was changed"


def _repair(desired: Desired, row: Registration | None, login: Login) -> tuple[list[Change], list[str]]:
    """Compare a login with what it should be."""
    changes: list[Change] = []
    drift: list[str] = []

    def repair(change: Change, words: str) -> None:
        changes.append(change)
        drift.append(words)

    if not login.mapped:
        repair(Remap(login.slot), "a login led to other rows")
    if login.attributes:
        repair(Strip(login.slot, tuple(sorted(login.attributes))), "a login was given attributes")
    if login.expires:
        repair(Strip(login.slot, ("VALID UNTIL",)), "a login was made to expire")
    for group in sorted(login.groups - {desired.group}):
        repair(Leave(login.slot, group), "a login was made a member of another role")
    for member in sorted(login.members - {OPERATOR}):
        repair(Expel(login.slot, member), "a role was made a member of a login")
    if desired.group not in login.groups:
        suspended = row is not None and row.state != "active"
        changes.append(Join(login.slot, desired.group))
        drift += [] if suspended else ["a login was taken out of its group"]
    wanted = settings(desired, row)
    if login.connection_limit != desired.connections or login.settings != frozenset(wanted) or login.databases:
        repair(Configure(login.slot, desired.connections, wanted, tuple(sorted(login.databases))), _LIMITS)
    return changes, drift


# -- a tenant that is to end ------------------------------------------------------------------------------------------


def _end(desired: Desired, observed: Observed, ending: Ending) -> Decision:
    """Stop its logins and keep its rows; with a confirmed deletion, delete them too, later."""
    row = observed.registration
    if row is None or row.state == "purged" or (row.resource_uid not in (None, desired.uid) and observed.owner_lives):
        return Decision(over=True)
    stops = [*_suspend(desired, observed, row)]
    if stops:
        return Decision(tuple(stops))
    if desired.existence == "suspended":
        return Decision(over=True)
    exported = row.exported
    if exported is None:
        return Decision((Export(observed.now + ending.retention),))
    if ending.exports and not exported.file:  # the place for it came later
        return Decision((Export(exported.retain_until),), ending=exported)
    if observed.now < exported.retain_until:
        return Decision(waits=_kept(exported), ending=exported)
    return Decision((Purge(),), ending=exported)


def _kept(exported: Exported) -> str:
    where = f"exported to {exported.file}" if exported.file else NOT_EXPORTED
    return f"suspended; its rows are kept until {exported.retain_until:%Y-%m-%dT%H:%M:%SZ}; {where}"


def _suspend(desired: Desired, observed: Observed, row: Registration) -> Iterator[Change]:
    if row.state != "suspended":
        yield Record({"state": "suspended", "suspended_at": observed.now})
    for slot, login in sorted(observed.logins.items()):
        if login.exists:
            yield from (Leave(slot, group) for group in sorted(login.groups & {GROUP, APART_GROUP}))
            # An open session may hold the role's row in the catalogue (ALTER ROLE), and one may be opened meanwhile.
            yield from (EndSessions(slot), Lock(slot)) if login.can_login else ()
            yield from (EndSessions(slot),) if login.sessions else ()
    ours = {name for name, secret in observed.secrets.items() if secret.state == "ours"}
    if ours:
        yield DeleteSecrets(tuple(sorted(ours)))
    if row.namespaces and not ours:
        yield Record({"namespaces": []})
