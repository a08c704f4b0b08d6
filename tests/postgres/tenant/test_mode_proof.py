"""The proof for tenants with a schema or a database of their own: it holds, and each known hole turns it red."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from flowstone.db.catalogue_linter import lint
from flowstone.db.logins import Logins
from flowstone.db.mode_proof import ModeProof
from flowstone.db.own_databases import OwnDatabases
from flowstone.db.passwords import scram_verifier
from flowstone.db.tenant_catalogue import TenantCatalogue
from flowstone.db.tenant_steps import random_stem
from flowstone.tenant.attack import DATABASE
from flowstone.tenant.attacks_modes import OWN_DATABASE, SCHEMA
from flowstone.tenant.own_database import Names
from flowstone.tenant.suite import ATTACKS, CHECKS
from tests.postgres.servers import Server
from tests.postgres.tenant.proving import CLUSTER, Proving, any_server, proving

__all__ = ["any_server"]

pytestmark = pytest.mark.postgres


@dataclass(frozen=True)
class Modes:
    """A proven database with a tenant of each isolation.

    Attributes:
        own: Name of the one's database, and beginning of its login's.
        schema: Name of the other's schema, and beginning of its login's.
    """

    field: Proving
    own: str
    schema: str

    def open(self) -> set[str]:
        """What linter and the isolations' attacks find now."""
        with self.field.ledger.database.transaction() as tx:
            found = {f"lint {one.check.name}" for one in lint(tx)}
        results = ModeProof(self.field.ledger.database, CLUSTER, self.field.place.operator).results(frozenset())
        return found | {f"attack {one.attack.id}: {one.outcome}" for one in results if one.state == "open"}


@pytest.fixture
def modes(any_server: Server) -> Iterator[Modes]:
    """Tenants `big` with a database and `wide` with a schema of its own, each with its first login."""
    with proving(any_server) as field:
        own, schema = (f"tn_{random_stem()}" for _ in range(2))
        for tenant, isolation, base in (("big", "Database", own), ("wide", "Schema", schema)):
            field.admin(
                "INSERT INTO flowstone.tenant (cluster, tenant_id, scope, isolation, role_base) "
                f"VALUES ('c1', '{tenant}', 't/c1/{tenant}', '{isolation}', '{base}')"
            )
            Logins(field.ledger.database).ensure(
                f"t/c1/{tenant}", "tn", tenant, "a", base.removeprefix("tn_"), apart=isolation == "Database"
            )
        field.admin(
            f"CREATE SCHEMA {schema} AUTHORIZATION flowstone_operator",
            f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {schema}_a",
        )
        databases, names = OwnDatabases(field.ledger.database, field.place.operator), Names(own, (f"{own}_a",))
        databases.make(names)
        yield Modes(field, own, schema)
        databases.drop(names)


def test_it_holds_and_leaves_nothing_behind(modes: Modes) -> None:
    """All attacks of both isolations are made and get nowhere; no database or schema of a canary stays."""
    report = modes.field.verify()
    assert [str(one) for one in report.open] == []
    assert report.admitted == ()
    counts = {group.name: group.tried for group in report.groups}
    assert counts["attacks: schema"] == len(SCHEMA)
    assert counts["attacks: database"] + counts["attacks: fence"] == len(OWN_DATABASE)
    assert report.checks >= len(CHECKS) + len(ATTACKS) + len(SCHEMA) + len(OWN_DATABASE)
    assert modes.field.place.all("SELECT datname FROM pg_database WHERE datname ^@ 'tn_'") == [(modes.own,)]
    schemas = modes.field.place.all("SELECT nspname::text FROM pg_namespace WHERE nspname ^@ 'tn_'")
    assert schemas == [(modes.schema,)]
    logins = "SELECT count(*) FROM pg_roles r JOIN flowstone.login_scope s ON s.role_name = r.rolname WHERE rolcanlogin"
    assert modes.field.place.all(logins) == [(0,)]


def test_what_nobody_uses_is_not_tried(any_server: Server) -> None:
    """Without such tenants no canary gets a schema or database, and the report does not speak of them."""
    with proving(any_server) as field:
        assert not {"attacks: schema", "attacks: database"} & {group.name for group in field.verify().groups}


HOLES = {
    "everybody may connect": (
        "GRANT CONNECT ON DATABASE {own} TO PUBLIC",
        "REVOKE CONNECT ON DATABASE {own} FROM PUBLIC",
    ),
    "a stranger may connect": (
        "CREATE ROLE stranger LOGIN; GRANT CONNECT ON DATABASE {own} TO stranger",
        "REVOKE CONNECT ON DATABASE {own} FROM stranger; DROP ROLE stranger",
    ),
    "another tenant may connect": (
        "GRANT CONNECT ON DATABASE {own} TO {schema}_a",
        "REVOKE CONNECT ON DATABASE {own} FROM {schema}_a",
    ),
    "all tenants may connect": (
        "GRANT CONNECT ON DATABASE {own} TO flowstone_tenant",
        "REVOKE CONNECT ON DATABASE {own} FROM flowstone_tenant",
    ),
    "the tenant may pass it on": (
        "GRANT CONNECT ON DATABASE {own} TO {own}_a WITH GRANT OPTION",
        "REVOKE GRANT OPTION FOR CONNECT ON DATABASE {own} FROM {own}_a",
    ),
    "the tenant makes schemas": (
        "GRANT CREATE ON DATABASE {own} TO {own}_a",
        "REVOKE CREATE ON DATABASE {own} FROM {own}_a",
    ),
    "the tenant owns its database": ("ALTER DATABASE {own} OWNER TO {own}_a", "ALTER DATABASE {own} OWNER TO {own}_o"),
    "the owner logs in": ("ALTER ROLE {own}_o LOGIN", "ALTER ROLE {own}_o NOLOGIN"),
    "the owner has BYPASSRLS": ("ALTER ROLE {own}_o BYPASSRLS", "ALTER ROLE {own}_o NOBYPASSRLS"),
    "the tenant is its owner": ("GRANT {own}_o TO {own}_a", "REVOKE {own}_o FROM {own}_a"),
    "the owner has another member": ("GRANT {own}_o TO flowstone_pool", "REVOKE {own}_o FROM flowstone_pool"),
    "its login is in the group of all": ("GRANT flowstone_tenant TO {own}_a", "REVOKE flowstone_tenant FROM {own}_a"),
    "its login reaches the ledger": (
        "GRANT CONNECT ON DATABASE {ledger} TO {own}_a",
        "REVOKE CONNECT ON DATABASE {ledger} FROM {own}_a",
    ),
    "all such logins reach the ledger": (
        "GRANT CONNECT ON DATABASE {ledger} TO flowstone_apart",
        "REVOKE CONNECT ON DATABASE {ledger} FROM flowstone_apart",
    ),
    "all such logins read the ledger": (
        "GRANT SELECT ON flowstone.batch TO flowstone_apart",
        "REVOKE SELECT ON flowstone.batch FROM flowstone_apart",
    ),
    "all such logins read everything": (
        "GRANT pg_read_all_data TO flowstone_apart",
        "REVOKE pg_read_all_data FROM flowstone_apart",
    ),
    "its login has an attribute": ("ALTER ROLE {own}_a CREATEDB", "ALTER ROLE {own}_a NOCREATEDB"),
    "a tenant connects elsewhere": (
        "GRANT CONNECT ON DATABASE template1 TO {schema}_a",
        "REVOKE CONNECT ON DATABASE template1 FROM {schema}_a",
    ),
    "the tenant owns its schema": (
        "ALTER SCHEMA {schema} OWNER TO {schema}_a",
        "ALTER SCHEMA {schema} OWNER TO flowstone_operator",
    ),
    "the schema is open to all": (
        "GRANT USAGE ON SCHEMA {schema} TO PUBLIC",
        "REVOKE USAGE ON SCHEMA {schema} FROM PUBLIC",
    ),
    "the schema is open to another": (
        "GRANT USAGE ON SCHEMA {schema} TO {own}_a",
        "REVOKE USAGE ON SCHEMA {schema} FROM {own}_a",
    ),
    "all make in the schema": (
        "GRANT CREATE ON SCHEMA {schema} TO flowstone_tenant",
        "REVOKE CREATE ON SCHEMA {schema} FROM flowstone_tenant",
    ),
}
"""What plants a hole, and what takes it back."""


def test_every_known_hole_is_seen(modes: Modes, capsys: pytest.CaptureFixture[str]) -> None:
    """Each hole turns linter or attacks red, and nothing is red without one; the kill rate is printed."""
    words = {"own": modes.own, "schema": modes.schema, "ledger": modes.field.place.name}

    def linted() -> set[str]:
        with modes.field.ledger.database.transaction() as tx:
            return {one.check.name for one in lint(tx)}

    assert linted() == set()
    seen = {}
    for name, (plant, undo) in HOLES.items():
        modes.field.admin(*plant.format(**words).split("; "))
        seen[name] = linted()
        modes.field.admin(*undo.format(**words).split("; "))
    assert linted() == set()
    survivors = [name for name, found in seen.items() if not found]
    with capsys.disabled():
        print(f"\nholes of isolation Schema and Database: {len(HOLES) - len(survivors)} of {len(HOLES)} seen")
    assert survivors == []


def test_attacks_find_what_they_are_for(modes: Modes) -> None:
    """Without the linter: rights that a login of either isolation could use are found by using them."""
    ledger = modes.field.place.name
    assert modes.open() == set()
    modes.field.admin(
        f"GRANT CONNECT ON DATABASE {ledger} TO flowstone_apart",
        f"GRANT CREATE ON DATABASE {ledger} TO flowstone_tenant",
    )
    attacks = {one for one in modes.open() if one.startswith("attack")}
    assert attacks == {"attack database/connects to the ledger's: connected", "attack schema/makes another: done"}


def test_sessions_of_its_logins_are_seen_and_ended(modes: Modes) -> None:
    """After bootstrap too, where PUBLIC may no longer call what ends sessions, and from the ledger's database."""
    logins, name = Logins(modes.field.ledger.database), f"{modes.own}_a"
    logins.set_password(name, scram_verifier("big-secret-0815"))
    with psycopg.connect(modes.field.place.server.conninfo(modes.own, name, "big-secret-0815")) as session:
        view = TenantCatalogue(modes.field.ledger.database, CLUSTER).view("big", "t/c1/big", statement_timeout=1)
        assert view.logins["a"].sessions == 1
        assert logins.end_sessions(name) == 1
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


def test_before_bootstrap_reaching_the_ledger_is_admitted(modes: Modes) -> None:
    """While everybody may connect everywhere, that is Hardened's to report."""
    modes.field.admin(f"GRANT CONNECT ON DATABASE {modes.field.place.name} TO PUBLIC")
    proof = ModeProof(modes.field.ledger.database, CLUSTER, modes.field.place.operator)
    found = {one.attack.id: one.state for one in proof.results(frozenset({DATABASE})) if one.state != "held"}
    assert found == {"database/connects to the ledger's": "admitted"}


def test_what_the_operator_may_not_make_is_not_tried(modes: Modes) -> None:
    """Without the right to make databases those attacks count as not tried; all others are."""
    modes.field.admin("ALTER ROLE flowstone_operator NOCREATEDB")
    try:
        report = modes.field.verify()
    finally:
        modes.field.admin("ALTER ROLE flowstone_operator CREATEDB")
    assert [str(one) for one in report.open] == []
    assert set(report.skipped) == {attack.id for attack in OWN_DATABASE}
