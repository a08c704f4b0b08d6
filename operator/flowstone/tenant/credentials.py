"""A tenant's passwords: which login the Secrets hold, when it changes, and what is done when somebody interferes. Pure.

The rules are invariants 1 and 2 of `changes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from flowstone.tenant.desired import Desired
from flowstone.tenant.observed import OTHER, Observed, Registration, Secret, Slot
from flowstone.tenant.steps import Change, EndSessions, Issue, Lock, MakeLogin, Record, Restore, WriteSecrets

LAG = timedelta(seconds=60)
"""A pod may still start with a Secret's old content for so long after it changed."""

KEEPALIVES = frozenset({"tcp_keepalives_idle=15", "tcp_keepalives_interval=5", "tcp_keepalives_count=3"})
"""Settings of each login: locks of a worker whose node is gone are held for half a minute, not for two hours."""


def credentials(desired: Desired, observed: Observed) -> tuple[list[Change], list[str], str]:
    """Return what to do about passwords and Secrets, what was changed by hand, and what waits."""
    row = observed.registration
    active = row.active_slot if row else None
    writable = [observed.secrets[n] for n in desired.namespaces if observed.secrets[n].state in ("absent", "ours")]
    if not writable:
        return [], [], "credentials wait for a namespace to put them into"
    chosen = _choose(observed, writable, active)
    if chosen is None:
        return _issue(desired, observed, row)
    slot, password, works = chosen
    changes: list[Change] = [] if works else [Restore(slot, password)]
    drift = [] if works or active is None else ["a password, or the right to log in, was changed"]
    held = (observed.logins[slot].role_name, password)
    stale = tuple(s.namespace for s in writable if not s.current or s.credentials != held)
    if stale:
        changes.append(WriteSecrets(slot, password, stale))
        if any(observed.secrets[n].state == "ours" for n in stale) and slot == active:
            drift.append("a Secret was changed")
    if slot != active:
        changes.append(Record({"active_slot": slot, "rotated_at": observed.now}))
    if changes or row is None:
        return changes, drift, ""
    rotation, waits = _rotation(desired, observed, row, slot)
    return rotation, drift, waits


def _issue(desired: Desired, observed: Observed, row: Registration | None) -> tuple[list[Change], list[str], str]:
    """Make credentials where none are known."""
    active = row.active_slot if row else None
    if row is None or active is None:
        return [Issue("a", standby=False)], [], ""
    slot = OTHER[active] if may_rekey(observed, row, OTHER[active]) else active
    lost = ["the credentials were lost"] if row.state == "active" else []
    return [*_ready(desired, row, observed, slot), Issue(slot, standby=slot != active)], lost, ""


def _choose(observed: Observed, secrets: list[Secret], active: Slot | None) -> tuple[Slot, str, bool] | None:
    """Return the credentials that all Secrets should hold, and whether they work; None when they are lost.

    The login that stands by comes first: Secrets that hold it, and work, are a rotation that broke off half-way.
    """
    slots = {login.role_name: slot for slot, login in observed.logins.items() if login.exists}
    held = [s.credentials for s in secrets if s.state == "ours" and s.credentials and s.role_name in slots]
    ranked = sorted(
        {(not observed.works.get(one, False), slots[one[0]] == active, -held.count(one), one) for one in held}
    )
    for fails, is_active, _, (role_name, password) in ranked:
        if not fails or is_active or active is None:
            return slots[role_name], password, not fails
    return None


def _rotation(desired: Desired, observed: Observed, row: Registration, active: Slot) -> tuple[list[Change], str]:
    """Change to the other login when it is time, and stop what a namespace that was taken away still knows."""
    standby = OTHER[active]
    revoked = row.revoked_at is not None and row.rotated_at is not None and row.rotated_at > row.revoked_at
    if revoked:
        return _stop_revoked(observed, row, standby)
    if not _due(desired, row, observed.now):
        return [], ""
    if not may_rekey(observed, row, standby):
        return [], "fresh credentials wait until nobody uses the other login"
    done: dict[str, Any] = {"rotate_token": desired.rotate_token}
    return [*_ready(desired, row, observed, standby), Issue(standby, standby=True), Record(done)], ""


def _ready(desired: Desired, row: Registration, observed: Observed, slot: Slot) -> Iterator[Change]:
    login = observed.logins.get(slot)
    if login is None or not login.exists:
        yield MakeLogin(slot, desired.connections, settings(desired, row))


def _due(desired: Desired, row: Registration, now: datetime) -> bool:
    if row.rotated_at is None or (row.revoked_at is not None and row.rotated_at <= row.revoked_at):
        return True
    return now - row.rotated_at >= desired.rotate_every or desired.rotate_token not in ("", row.rotate_token)


def _stop_revoked(observed: Observed, row: Registration, standby: Slot) -> tuple[list[Change], str]:
    login = observed.logins.get(standby)
    if login is not None and login.exists and login.can_login and _batches_may_use(observed, row):
        return [], "a namespace's old credentials are good until the batches that use them are over"
    ends: list[Change] = [EndSessions(standby), Lock(standby), EndSessions(standby)]  # one may hold the role's row
    stop = ends if login is not None and login.exists else []
    return [*stop, Record({"revoked_at": None})], ""


def may_rekey(observed: Observed, row: Registration, slot: Slot) -> bool:
    """Whether nobody can be using the login that stands by."""
    login = observed.logins.get(slot)
    if login is None or not login.exists or not login.can_login:
        return True
    return login.sessions == 0 and not _batches_may_use(observed, row)


def _batches_may_use(observed: Observed, row: Registration) -> bool:
    """Whether an open batch was handed out while the Secrets may have held the login that stands by."""
    if observed.oldest_batch is None or row.rotated_at is None:
        return False
    return observed.oldest_batch <= row.rotated_at + LAG


def settings(desired: Desired, row: Registration | None) -> tuple[str, ...]:
    """Return the settings that each of the tenant's logins has, as `name=value`."""
    found = set(KEEPALIVES)
    if desired.statement_timeout:
        found.add(f"statement_timeout={desired.statement_timeout}s")
    if desired.isolation == "Schema" and row is not None and row.role_base:
        found.add(f"search_path={row.role_base}, pg_temp")
    return tuple(sorted(found))
