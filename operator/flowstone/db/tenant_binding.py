"""What a connection must do before its next statement, so that it runs for the tenant in force. Pure.

The context lives in the transaction (`set_config(..., true)`), so it is gone after each commit and is given again
before the first statement of the next one. It expires, so it is signed anew when little is left. The connection
remembers for whom its transaction works, and compares that with the capability in force at each use: a block that
ended, a suspended generator or another task's tenant is found here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flowstone.db.tenant_login import LoginKind
from flowstone.db.tenants import NO_TENANT
from flowstone.errors import TenantRefused, TenantUnknown, UnsafeLogin
from flowstone.tenant.capability import required
from flowstone.tenant.signing import LIFETIME_SECONDS, RENEW_SECONDS, ContextKeys

ENTER = "SELECT flowstone.enter_tenant(%s)"
"""Gives the transaction its context; answers `entered`, or why not. The context is always a bound parameter: as
text of the statement, every session of the same role could read it in pg_stat_activity."""

_REFUSALS = {
    "other": "this transaction works for another tenant: commit or roll back before the next tenant's work",
    "cursor": "a cursor is open on this connection: close it before the tenant's work begins",
    "refused": "the database did not accept the context: is the key file the database's, and do the clocks "
    "agree within a minute?",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A context to be given to the transaction."""

    tenant_id: str
    expiry: int
    context: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What the driver knows about the connection.

    Attributes:
        idle: No transaction is open; the next statement begins one.
        failed: The transaction has failed and takes no more statements.
        autocommit: A statement outside an explicit transaction is a transaction of its own.
    """

    idle: bool
    failed: bool
    autocommit: bool


class Binding:
    """The memory of one connection that does tenants' work.

    Args:
        given: What contexts are signed with.
        read: Reads the keys anew for each context when none were given, so that a rotated file is noticed.
        clock: Unix time in seconds.
        watched: Every begin and end of a transaction calls `forget`. Without it the server is asked at each statement.
    """

    def __init__(
        self,
        given: ContextKeys | None,
        *,
        read: Callable[[], ContextKeys],
        clock: Callable[[], float],
        watched: bool,
    ) -> None:
        self.given = given
        self._read = read
        self._clock = clock
        self._watched = watched
        self._login: LoginKind | None = None
        self._own_tenant: str | None = None
        self._entered: Entry | None = None
        self._given = False

    @property
    def login_known(self) -> bool:
        """Whether the login was judged already."""
        return self._login is not None

    def recognise(self, login: LoginKind, own_tenant: str | None) -> None:
        """Remember what login this is, and whose if it is a tenant's own."""
        self._login, self._own_tenant = login, own_tenant

    def forget(self) -> None:
        """A transaction or savepoint began or ended: the context may be gone."""
        self._entered = None

    def withdrawn(self) -> None:
        """The context was taken off the transaction, for good or for another tenant's block inside."""
        self._given = False

    @property
    def paused_context(self) -> str | None:
        """What the transaction had before it was taken off."""
        return None if self._given or self._entered is None else self._entered.context

    def check(self) -> None:
        """Make sure that rows of this connection may be looked at now.

        Raises:
            TenantRequired: No tenant is set.
            TenantRefused: Another tenant's transaction produced them.
        """
        tenant_id = required().tenant_id
        if self._entered is not None and self._entered.tenant_id != tenant_id:
            raise TenantRefused(_REFUSALS["other"])

    def needed(self, situation: Situation) -> Entry | None:
        """Return the context to give before the next statement, or None when it has it.

        Raises:
            TenantRequired: No tenant is set.
            TenantRefused: This connection cannot work for the tenant in force now.
        """
        tenant_id = required().tenant_id
        if self._login is not None and self._login.kind == "tenant":
            self._check_own(tenant_id)
            return None
        if situation.failed:
            return None
        if situation.idle and situation.autocommit:
            raise TenantRefused("this connection is in autocommit, where a context would be void: turn it off")
        if situation.idle:
            self.forget()
        if self._entered is not None and self._watched:
            if self._entered.tenant_id != tenant_id:
                raise TenantRefused(_REFUSALS["other"])
            if self._given and self._entered.expiry - self._clock() > RENEW_SECONDS:
                return None
        return self._signed(tenant_id)

    def accept(self, entry: Entry, verdict: object) -> None:
        """Remember that the server answered.

        Raises:
            TenantUnknown: No active tenant of that id is registered.
            TenantRefused: It said no for another reason.
        """
        if verdict == "unknown":
            raise TenantUnknown(NO_TENANT)
        if verdict != "entered":
            raise TenantRefused(_REFUSALS.get(str(verdict), _REFUSALS["refused"]))
        self._entered, self._given = entry, True

    def _check_own(self, tenant_id: str) -> None:
        if self._own_tenant != tenant_id:
            raise UnsafeLogin("this is another tenant's own login: connect with this tenant's, or with a pooled one")

    def _signed(self, tenant_id: str) -> Entry:
        expiry = int(self._clock()) + LIFETIME_SECONDS
        keys = self.given if self.given is not None else self._read()
        return Entry(tenant_id, expiry, keys.sign(tenant_id, expiry))
