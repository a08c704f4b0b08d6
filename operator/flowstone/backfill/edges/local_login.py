"""The logins of work on this machine: a role per scope in Postgres, its password in a private file here.

A namespace's local work has slot `b` to itself, since an operator that shares the ledger keeps slot `a` in a Secret. A
tenant's two slots belong to its rotation: where the tenant's login has a password already and this machine does not
know it, somebody else runs that tenant's work, and nothing is changed.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flowstone.db.endpoint import place_of
from flowstone.db.logins import Login, Logins, try_login
from flowstone.db.passwords import scram_verifier
from flowstone.errors import LedgerBusy, LedgerRefused
from flowstone.tenant.names import tenant_of_scope

_KEPT = {"hostaddr": "PGHOSTADDR", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
"""Parameters of a connection string that a worker needs too, besides host, port and database."""

_IN_USE = (
    "the tenant's login is used by an operator or another machine: run this backfill there, or give this machine a "
    "ledger of its own"
)

_PLACE = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE"}
_KEYWORDS = {**_PLACE, **_KEPT, "user": "PGUSER", "password": "PGPASSWORD"}


class LocalLogin:
    """Lets the processes of this machine in at the ledger, a scope's under the login of that scope.

    Args:
        logins: Makes the roles.
        target: The workers' way to the ledger, as libpq's variables without login and password.
        folder: Where passwords are kept, one file (0600) per role.
        new_password: Draws a password.
    """

    def __init__(
        self,
        logins: Logins,
        target: Mapping[str, str],
        folder: Path,
        new_password: Callable[[], str],
    ) -> None:
        self._logins = logins
        self._target = target
        self._folder = folder
        self._new_password = new_password
        self._known: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def __call__(self, scope: str) -> Mapping[str, str]:
        """Make sure that the scope's login is let in; returns libpq's variables for it.

        Raises:
            LedgerRefused: The tenant's login is in somebody else's hands.
        """
        with self._lock:
            if scope not in self._known:
                self._known[scope] = self._made(scope)
            return self._known[scope]

    def _made(self, scope: str) -> dict[str, str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Postgres refuses two changes of one role at the same time
            login = self._ensured(scope)
            password = self._password(login)
            variables = {**self._target, "PGUSER": login.role_name, "PGPASSWORD": password}
            if not (login.can_login and try_login(_conninfo(variables))):
                self._let_in(login, password)
        return variables

    def _let_in(self, login: Login, password: str) -> None:
        """Set the password; but a tenant's login that has another one by now was adopted by an operator."""
        if login.can_login and tenant_of_scope(login.scope) is not None:
            raise LedgerRefused(_IN_USE)
        self._logins.set_password(login.role_name, scram_verifier(password))

    def _ensured(self, scope: str) -> Login:
        try:
            return self._ensured_once(scope)
        except LedgerBusy:  # another process made it just now
            return self._ensured_once(scope)

    def _ensured_once(self, scope: str) -> Login:
        tenant = tenant_of_scope(scope)
        if tenant is None:
            return self._logins.ensure(scope, "ns", slot="b")
        return self._logins.ensure(scope, "tn", tenant)

    def _password(self, login: Login) -> str:
        file = self._folder / login.role_name
        if file.exists():
            return file.read_text()
        if login.can_login and tenant_of_scope(login.scope) is not None:
            raise LedgerRefused(_IN_USE)
        return _written(file, self._new_password())


def _written(file: Path, password: str) -> str:
    """Keep a password in a new private file, whole or not at all."""
    new = file.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(password)
    new.rename(file)
    return password


def _conninfo(variables: Mapping[str, str]) -> str:
    words = {keyword: variables[name] for keyword, name in _KEYWORDS.items() if name in variables}
    return make_conninfo(**words)


def target_of(conninfo: str) -> dict[str, str]:
    """The place that a connection string means, as libpq's variables, without login and password."""
    place, given = place_of(conninfo), conninfo_to_dict(conninfo)
    found = {"PGHOST": place.host, "PGPORT": place.port, "PGDATABASE": place.database}
    for keyword, variable in _KEPT.items():
        if value := given.get(keyword) or os.environ.get(variable):
            found[variable] = str(value)
    return found
