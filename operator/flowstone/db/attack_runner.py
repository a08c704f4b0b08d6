"""Runs the adversarial suite from the canaries' own logins, each attack in a transaction that is rolled back."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from flowstone.db.canaries import SECRET, VICTIM_ID, Cage, Canary
from flowstone.db.connection import Connection, translated
from flowstone.errors import LedgerUnavailable
from flowstone.tenant.attack import Attack, Result, judged
from flowstone.tenant.names import tenant_of_scope
from flowstone.tenant.signing import ContextKeys

_SESSION = "SET statement_timeout = '5s'; SET lock_timeout = '2s'; SET timezone = 'UTC'"
"""An attack that hangs has not been refused; it is cut off, and reported."""

_BUSY = "SELECT 'a statement of the victim' AS shown_to_nobody_else"

_STATE = "SELECT md5(string_agg(c::text, ';' ORDER BY c::text)) FROM flowstone.canary c"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the attacks need to know of their surroundings.

    Attributes:
        keys: What contexts are signed with; None where this process does not have them.
        left_open: Names of the measures of `hardening` that are open.
    """

    keys: ContextKeys | None
    left_open: frozenset[str]


def run(cage: Cage, attacks: Iterable[Attack], ground: Ground) -> Iterator[Result]:
    """Yield what came of each attack, in order.

    Raises:
        LedgerUnavailable: Postgres went away, so nothing is known.
    """
    with translated(), closing(_connect(cage.victim.conninfo)) as victim:
        victim.execute(_BUSY)
        words = _words(cage, ground, victim)
        sessions = _Sessions(cage)
        try:
            for attack in attacks:
                if (attack.principal == "pool" and cage.pool is None) or (attack.keyed and ground.keys is None):
                    yield Result(attack, "", "skipped")
                else:
                    yield judged(attack, _outcome(sessions.of(attack), attack, words), ground.left_open)
        finally:
            sessions.close()


def accepted(cage: Cage, keys: ContextKeys) -> bool:
    """Whether the database lets in what these keys sign; it may know others, or none."""
    if cage.pool is None:
        return False
    own = cage.attacker
    tenant = tenant_of_scope(own.scope) or own.tenant_id
    with translated(), closing(_connect(cage.pool)) as connection:
        [(now,)] = connection.execute("SELECT extract(epoch FROM clock_timestamp())::bigint").fetchall()
        signed = ContextKeys(keys.keys, own.scope.split("/")[1]).sign(tenant, int(now) + 300)
        with connection.transaction():
            return connection.execute("SELECT flowstone.enter_tenant(%s)", [signed]).fetchall() == [("entered",)]


def undecided(results: Iterable[Result]) -> bool:
    """Whether all that did not hold was cut off waiting for a lock, which is no answer."""
    outcomes = {one.outcome for one in results if one.state == "open"}
    return outcomes == {pg.LockNotAvailable.sqlstate}


def state(canary: Canary) -> str:
    """Return a digest of all that a canary sees of its table."""
    with translated(), closing(_connect(canary.conninfo)) as connection:
        [(digest,)] = connection.execute(_STATE).fetchall()
        return str(digest)


def against(
    conninfo: str, attacks: Iterable[Attack], words: Mapping[str, str], left_open: frozenset[str]
) -> Iterator[Result]:
    """Yield what came of attacks that all come from one login.

    Args:
        conninfo: Of the login.
        attacks: What it does, in order.
        words: What stands for the names in braces.
        left_open: Names of the measures of `hardening` that are open.

    Raises:
        LedgerUnavailable: Postgres went away, so nothing is known.
    """
    with translated():
        connection = _connect(conninfo)
        try:
            for attack in attacks:
                if connection.closed:
                    connection = _connect(conninfo)
                yield judged(attack, _outcome(connection, attack, words), left_open)
        finally:
            connection.close()


class _Sessions:
    """One session per principal, opened when it is first needed and anew when it was lost."""

    def __init__(self, cage: Cage) -> None:
        self._conninfo = {"tenant": cage.attacker.conninfo, "pool": cage.pool or ""}
        self._open: dict[str, Connection] = {}

    def of(self, attack: Attack) -> Connection:
        connection = self._open.get(attack.principal)
        if connection is None or connection.closed:
            connection = self._open[attack.principal] = _connect(self._conninfo[attack.principal])
        return connection

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()


def _connect(conninfo: str) -> Connection:
    connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
    connection.execute(_SESSION)
    return connection


def _outcome(connection: Connection, attack: Attack, words: Mapping[str, str]) -> str:
    """Do what the attack says, and return what happened to its last statement, or to the first that failed."""
    outcome = ""
    try:
        connection.execute("BEGIN")
        for statement in attack.statements:
            outcome = _done(connection, statement.format(**words))
    except psycopg.Error as error:
        outcome = error.sqlstate or "lost"
    finally:
        _reset(connection)
    return outcome


def _done(connection: Connection, statement: str) -> str:
    cursor = connection.cursor()
    if statement.startswith("COPY"):
        return _copied(cursor, statement)
    cursor.execute(statement.encode())
    return "done" if cursor.rowcount < 0 else f"{cursor.rowcount} rows"


def _copied(cursor: psycopg.Cursor[Any], statement: str) -> str:
    with cursor.copy(statement.encode()) as copy:
        if statement.endswith("STDIN"):
            copy.write(b"intruder\t1\tintruder\n")
            return "1 rows"
        return f"{sum(bytes(part).count(10) for part in copy)} rows"


def _reset(connection: Connection) -> None:
    """Leave nothing for the next attack; a session that cannot be cleared is closed, and the next one is fresh."""
    with suppress(psycopg.Error):
        connection.execute("ROLLBACK")
        connection.execute("DISCARD ALL")
        connection.execute(_SESSION)
        return
    connection.close()


def _words(cage: Cage, ground: Ground, victim: Connection) -> dict[str, str]:
    """Return what stands for the names in braces: literals, and a few plain names and numbers."""
    own, other = cage.attacker, cage.victim
    row = victim.execute("SELECT current_database(), extract(epoch FROM clock_timestamp())::bigint").fetchone()
    if row is None:
        raise LedgerUnavailable("the victim's session broke off")
    texts = {
        "own": own.tenant_id,
        "victim": other.tenant_id,
        "own_scope": own.scope,
        "victim_scope": other.scope,
        "victim_role": other.role_name,
        "secret": SECRET,
        **_contexts(own, other, ground.keys, int(row[1])),
    }
    return {
        **{name: sql.Literal(text).as_string() for name, text in texts.items()},
        "victim_name": sql.Identifier(other.role_name).as_string(),
        "database": sql.Identifier(str(row[0])).as_string(),
        "own_fence": str(own.fence),
        "victim_fence": str(other.fence),
        "victim_id": str(VICTIM_ID),
        "victim_pid": str(victim.info.backend_pid),
    }


def _contexts(own: Canary, victim: Canary, given: ContextKeys | None, now: int) -> dict[str, str]:
    """Return contexts that nobody may be let in with, and one of the attacker's own; `now` is the server's time."""
    payload = f"{victim.scope}.{now + 3600:010d}"
    forged = f"{payload}.{hmac.new(b'no key', payload.encode(), 'sha256').hexdigest()}"
    if given is None:
        return dict.fromkeys(("forged", "signed", "stretched", "expired", "foreign_key"), forged)
    keys = ContextKeys(given.keys, own.scope.split("/")[1])
    tenant = tenant_of_scope(own.scope) or own.tenant_id
    signed = keys.sign(tenant, now + 300)
    return {
        "forged": forged,
        "signed": signed,
        "stretched": f"{own.scope}.{now + 9000:010d}.{signed[-64:]}",
        "expired": keys.sign(tenant, now - 10),
        "foreign_key": ContextKeys.generate(keys.cluster).sign(tenant, now + 300),
    }
