"""The proof for isolation Schema and Database: canaries with a schema and a database of their own, and their attacks.

It runs only for what is in use: while no active tenant has a database of its own, none is made for a canary either.
All that is made here is gone afterwards, but for the registry's rows and logins that cannot log in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from flowstone.db.attack_runner import against
from flowstone.db.canaries import SECRET, canary_id
from flowstone.db.connection import Database, translated, wired
from flowstone.db.logins import Logins, try_login
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.passwords import scram_verifier
from flowstone.db.tenant_steps import random_stem
from flowstone.errors import LedgerRefused
from flowstone.tenant.attack import Attack, Result, judged
from flowstone.tenant.attacks_modes import CONNECT, CONNECTED, OWN_DATABASE, SCHEMA, SHUT
from flowstone.tenant.names import CANARY_PREFIX, tenant_scope
from flowstone.tenant.own_database import Names
from flowstone.tenant.statements import statements
from flowstone.tenant.steps import MakeSchema

_IN_USE = f"""
    SELECT DISTINCT isolation FROM flowstone.tenant
    WHERE state = 'active' AND isolation <> 'Shared' AND NOT tenant_id ^@ '{CANARY_PREFIX}'
"""  # noqa: S608 - a constant

_REGISTER = """
    INSERT INTO flowstone.tenant (cluster, tenant_id, scope, role_base, isolation)
    VALUES (%(cluster)s, %(tenant)s, %(scope)s, %(base)s, %(isolation)s) ON CONFLICT (tenant_id) DO NOTHING
"""

_FENCE = """
    INSERT INTO flowstone.batch (fence, backfill) VALUES (%(fence)s, %(uid)s);
    INSERT INTO flowstone.materialization (scope, asset, partition, backfill, fence, attempts, state)
    VALUES (%(scope)s, 'canary', '1', %(uid)s, %(fence)s, 0, 'running')
"""

_LETTERS = {"Database": ("c", "d"), "Schema": ("e", "f")}
"""Of the canaries' ids: the first one attacks, the second one is the victim."""


@dataclass(frozen=True, slots=True)
class _Canary:
    tenant_id: str
    scope: str
    base: str
    password: str

    @property
    def role_name(self) -> str:
        return f"{self.base}_a"


class ModeProof:
    """Attacks from where tenants of these isolations work.

    Args:
        database: The ledger's, as in `ledger.database`.
        cluster: The cluster's id.
        conninfo: Where the operator reaches Postgres.
        new_password: Makes passwords.
    """

    def __init__(
        self,
        database: Database,
        cluster: str,
        conninfo: str,
        *,
        new_password: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        self._database = database
        self._databases = OwnDatabases(database, conninfo)
        self._cluster = cluster
        self._conninfo = conninfo
        self._logins = Logins(database)
        self._new_password = new_password

    def results(self, left_open: frozenset[str]) -> list[Result]:
        """Return what came of the attacks of each isolation that is in use; one proof at a time runs this.

        Args:
            left_open: Names of the measures of `hardening` that are open.
        """
        with self._database.transaction() as tx:
            used = {isolation for (isolation,) in tx.rows(_IN_USE)}
        found: list[Result] = []
        for isolation, attacks, tried in (
            ("Schema", SCHEMA, self._from_schemas),
            ("Database", OWN_DATABASE, self._from_databases),
        ):
            if isolation in used:
                try:
                    found += tried(left_open)
                except LedgerRefused:  # what the operator may not make for canaries no tenant gets either
                    found += [Result(attack, "", "skipped") for attack in attacks]
        return found

    def _from_schemas(self, left_open: frozenset[str]) -> list[Result]:
        with self._out("Schema", self._schema, self._no_schema) as pair:
            return list(self._run(pair, SCHEMA, self._conninfo, left_open))

    def _from_databases(self, left_open: frozenset[str]) -> list[Result]:
        with self._out("Database", self._own_database, self._no_database) as pair:
            home = make_conninfo(self._conninfo, dbname=pair[0].base)
            return list(self._run(pair, OWN_DATABASE, home, left_open))

    @contextmanager
    def _out(
        self, isolation: str, make: Callable[[_Canary], None], clean: Callable[[_Canary], None]
    ) -> Iterator[tuple[_Canary, _Canary]]:
        """Yield both canaries of an isolation, each where it works; afterwards nobody can log in as them."""
        attacker, victim = (self._canary(isolation, letter) for letter in _LETTERS[isolation])
        try:
            for one in (attacker, victim):
                clean(one)
                make(one)
                self._logins.set_password(one.role_name, scram_verifier(one.password))
            yield attacker, victim
        finally:
            for one in (attacker, victim):
                self._shut(one)
                clean(one)

    def _canary(self, isolation: str, letter: str) -> _Canary:
        tenant = canary_id(self._cluster, letter)
        scope = tenant_scope(self._cluster, tenant)
        values = {"cluster": self._cluster, "tenant": tenant, "scope": scope, "isolation": isolation}
        with self._database.transaction() as tx:
            tx.run(_REGISTER, {**values, "base": f"tn_{random_stem()}"})
            [(base,)] = tx.rows("SELECT role_base FROM flowstone.tenant WHERE tenant_id = %(tenant)s", values)
        self._logins.ensure(scope, "tn", tenant, "a", base.removeprefix("tn_"), apart=isolation == "Database")
        return _Canary(tenant, scope, base, self._new_password())

    def _shut(self, one: _Canary) -> None:
        self._logins.end_sessions(one.role_name)
        with self._database.transaction() as tx:
            lock = sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(sql.Identifier(one.role_name))
            tx.connection.execute(lock)

    def _schema(self, one: _Canary) -> None:
        with self._database.transaction() as tx:
            tx.run_each(statements(MakeSchema(("a",)), {"a": one.role_name}, one.base))
            kept = sql.SQL("SET LOCAL ROLE {}; CREATE TABLE {} AS SELECT {}::text AS note; RESET ROLE").format(
                sql.Identifier(one.role_name), sql.Identifier(one.base, "kept"), sql.Literal(SECRET)
            )
            tx.connection.execute(kept)

    def _no_schema(self, one: _Canary) -> None:
        with self._database.transaction() as tx:
            tx.connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(one.base)))

    def _own_database(self, one: _Canary) -> None:
        self._databases.make(Names(one.base, (one.role_name,)))
        with self._databases.inside(one.base) as tx:
            for statement in _FENCE.split(";"):
                tx.run(statement, {"fence": 1, "uid": uuid4(), "scope": one.scope})

    def _no_database(self, one: _Canary) -> None:
        self._databases.drop(Names(one.base, ()))

    def _run(
        self, pair: tuple[_Canary, _Canary], attacks: tuple[Attack, ...], home: str, left_open: frozenset[str]
    ) -> Iterator[Result]:
        attacker, victim = pair
        own = make_conninfo(home, user=attacker.role_name, password=attacker.password)
        place = {} if attacks is SCHEMA else {"dbname": victim.base}
        other = make_conninfo(home, user=victim.role_name, password=victim.password, **place)
        with translated(), closing(psycopg.connect(wired(other, "flowstone-proof"), autocommit=True)) as session:
            session.execute("SELECT 'a statement of the victim' AS shown_to_nobody_else")
            words = self._words(attacker, victim, session.info.backend_pid)
            entries = [one for one in attacks if one.statements[0].startswith(CONNECT)]
            for one in entries:
                target = one.statements[0].removeprefix(CONNECT).format(**words)
                let_in = try_login(make_conninfo(own, dbname=target))
                yield judged(one, CONNECTED if let_in else SHUT, left_open)
            others = [one for one in attacks if one not in entries]
            yield from against(wired(own, "flowstone-proof"), others, words, left_open)

    def _words(self, own: _Canary, victim: _Canary, pid: int) -> Mapping[str, str]:
        with self._database.transaction() as tx:
            [(ledger,)] = tx.rows("SELECT current_database()")
        return {
            "own": sql.Literal(own.tenant_id).as_string(),
            "own_schema": own.base,
            "own_schema_name": sql.Literal(own.base).as_string(),
            "victim_schema": victim.base,
            "own_database": own.base,
            "victim_database": victim.base,
            "own_owner": f"{own.base}_o",
            "victim_owner": f"{victim.base}_o",
            "victim_role": victim.role_name,
            "victim_role_name": sql.Literal(victim.role_name).as_string(),
            "victim_pid": str(pid),
            "own_fence": "1",
            "ledger": str(ledger),
        }
