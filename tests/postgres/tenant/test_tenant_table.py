"""op.tenant_table: a table that is protected from its first moment, on a real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg.rows import TupleRow
from sqlalchemy.dialects import postgresql

from flowstone.db import tenant_table
from flowstone.db.tenant_table_check import declared
from flowstone.db.tenant_table_state import find
from flowstone.errors import InvalidSpec
from flowstone.tenant.protection import policies
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant_context import set_tenant_for_query, with_tenant
from tests.postgres.servers import Server
from tests.postgres.tenant.conftest import OPERATOR_PASSWORD, POOL_PASSWORD

pytestmark = pytest.mark.postgres
assert tenant_table.ALL  # its import registers the operation


@pytest.fixture
def operations(server: Server, keys: ContextKeys) -> Callable[[], Any]:
    """Alembic's operations as the installer, in one transaction."""

    @contextmanager
    def begin() -> Iterator[Any]:
        reach = partial(psycopg.connect, server.conninfo("postgres"))
        engine = sa.create_engine("postgresql+psycopg://", creator=reach, poolclass=sa.NullPool)
        with engine.begin() as connection:
            yield Operations(MigrationContext.configure(connection))

    return begin


@pytest.fixture
def table(operations: Callable[[], Any], server: Server) -> Iterator[str]:
    """A table `booking_...` with a foreign key, an index and two tenants' rows."""
    name = f"booking_{uuid.uuid4().hex[:8]}"
    with operations() as op:
        op.tenant_table(
            name,
            sa.Column("id", sa.BigInteger, sa.Identity()),
            sa.Column("parent", sa.BigInteger),
            sa.Column("note", sa.Text),
            sa.UniqueConstraint("tenant_id", "note"),
            sa.ForeignKeyConstraint(["tenant_id", "parent"], [f"public.{name}.tenant_id", f"public.{name}.id"]),
            key=["id"],
            indexes=[["parent"]],
        )
    with server.connect() as admin:
        admin.execute(
            f"INSERT INTO public.{name} (tenant_id, note) VALUES ('tenant_a', 'x'), ('tenant_b', 'x')".encode()
        )
        yield name
        admin.execute(f"DROP TABLE public.{name}".encode())


def test_each_tenant_works_with_its_rows(server: Server, keys: ContextKeys, table: str) -> None:
    """Through the pooled login rows are read, made, changed and deleted, one's own and no others."""
    with psycopg.connect(server.conninfo("postgres", "app", POOL_PASSWORD)) as connection, with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)

        def run(text: str) -> psycopg.Cursor[TupleRow]:
            return connection.execute(text.format(table).encode())

        assert run("SELECT tenant_id, note FROM public.{}").fetchall() == [("tenant_a", "x")]
        assert run("INSERT INTO public.{} (note) VALUES ('y') RETURNING tenant_id").fetchone() == ("tenant_a",)
        assert run("UPDATE public.{} SET note = note || '!'").rowcount == 2
        assert run("DELETE FROM public.{}").rowcount == 2
        connection.rollback()
        for refused in (
            "UPDATE public.{} SET tenant_id = 'tenant_b'",
            "INSERT INTO public.{} (tenant_id, note) VALUES ('tenant_b', 'z')",
            "TRUNCATE public.{}",
            "ALTER TABLE public.{} DISABLE ROW LEVEL SECURITY",
            "CREATE TRIGGER t AFTER INSERT ON public.{} EXECUTE FUNCTION flowstone.record_latest()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run(refused)
            connection.rollback()


def test_a_careless_policy_added_later_opens_nothing(server: Server, keys: ContextKeys, table: str) -> None:
    """The restrictive floor cancels `USING (true)`."""
    with server.connect() as admin:
        admin.execute(f"CREATE POLICY careless ON public.{table} USING (true)".encode())
    with psycopg.connect(server.conninfo("postgres", "app", POOL_PASSWORD)) as connection, with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        rows = connection.execute(f"SELECT DISTINCT tenant_id FROM public.{table}".encode()).fetchall()
        assert rows == [("tenant_a",)]


def test_the_catalogue_shows_what_was_written(operations: Callable[[], Any], server: Server, table: str) -> None:
    """FORCE is on, nobody logs in as the owner, and policies and grants are the declared ones in the server's words."""
    with server.connect() as admin:
        query = "SELECT relowner::regrole::text FROM pg_class WHERE relname = %s"
        assert admin.execute(query, [table]).fetchone() == ("flowstone_owner",)
    with operations() as op:
        found = find(op.get_bind(), "public", table)
    wanted = declared(["id", "parent", "note"], tenant_table.ALL)
    assert (found.enabled, found.forced) == (True, True)
    assert found.policies == wanted.policies
    assert found.rights == wanted.rights
    assert {policy.name for policy in found.policies} == {policy.name for policy in policies()}


@pytest.mark.parametrize(
    "column",
    [
        sa.UniqueConstraint("note"),
        sa.Column("code", sa.Text, unique=True),
        sa.Column("code", sa.Text, index=True),
        sa.Column("other", sa.Text, sa.ForeignKey("flowstone.tenant.tenant_id")),
        postgresql.ExcludeConstraint(("note", "="), using="btree"),
    ],
    ids=["unique constraint", "unique column", "index", "foreign key", "exclusion"],
)
def test_a_key_that_reaches_over_tenants_is_refused(
    operations: Callable[[], Any], server: Server, column: sa.schema.SchemaItem
) -> None:
    """Nothing is made, and the error says with what a key must begin."""
    with pytest.raises(InvalidSpec, match="begin with tenant_id"), operations() as op:
        op.tenant_table("refused", sa.Column("note", sa.Text), column, key=["note"])
    with server.connect() as admin:
        assert admin.execute("SELECT to_regclass('public.refused')").fetchone() == (None,)


NARROW = [
    pytest.param(sa.SmallInteger, [sa.Identity()], {}, "'SMALLINT': sa.BigInteger", id="smallint"),
    pytest.param(sa.Integer, [sa.Identity(always=True)], {}, "'INTEGER': sa.BigInteger", id="integer"),
    pytest.param(sa.BigInteger, [sa.Identity(cycle=True)], {}, "without cycle", id="cycle"),
    pytest.param(sa.BigInteger, [sa.Identity(maxvalue=2**31)], {}, "2147483647 numbers", id="maxvalue"),
    pytest.param(sa.BigInteger, [sa.Identity(start=2**63 - 9)], {}, "8 numbers", id="start"),
    pytest.param(sa.BigInteger, [sa.Identity(increment=2**60)], {}, "7 numbers", id="increment"),
    pytest.param(sa.BigInteger, [sa.Identity(increment=-1, minvalue=-1000)], {}, "999 numbers", id="downwards"),
    pytest.param(sa.BigInteger, [sa.Identity(cache=2**50)], {}, "8191 numbers", id="cache"),
    pytest.param(sa.BigInteger, [sa.Sequence("tickets")], {}, r"sa\.Identity\(\)", id="sequence"),
    pytest.param(
        sa.BigInteger,
        [],
        {"server_default": sa.text("NEXTVAL('flowstone.batch_fence_seq')")},
        r"sa\.Identity\(\)",
        id="nextval",
    ),
    pytest.param(sa.Integer, [], {"autoincrement": True}, r"sa\.Identity\(\)", id="serial"),
]


@pytest.mark.parametrize(("kind", "items", "options", "message"), NARROW)
def test_numbers_that_one_tenant_could_use_up_are_refused(
    operations: Callable[[], Any], kind: Any, items: list[Any], options: dict[str, Any], message: str
) -> None:
    """All draw from one sequence, and rolling back gives nothing back: it must be as good as endless."""
    with pytest.raises(InvalidSpec, match=rf"^refused\.number: .*{message}"), operations() as op:
        op.tenant_table("refused", sa.Column("number", kind, *items, **options), key=["number"])


def test_numbers_that_last_are_taken(operations: Callable[[], Any], server: Server) -> None:
    """An identity over bigint may begin elsewhere and count in steps; a narrow key that tenants choose is fine."""
    with operations() as op:
        number = sa.Column("number", sa.BigInteger, sa.Identity(start=1000, increment=10, cache=20))
        op.tenant_table("lasting", sa.Column("seat", sa.SmallInteger), number, key=["seat"])
    with server.connect() as admin:
        admin.execute("DROP TABLE public.lasting")


@pytest.mark.parametrize("key", [[], "id"], ids=["nothing", "a word"])
def test_a_key_without_a_column_is_refused(operations: Callable[[], Any], key: Any) -> None:
    """With `tenant_id` alone each tenant would have one row; a word is no list of columns."""
    with pytest.raises(InvalidSpec, match=r"^refused\.key: .*such as \['id'\]"), operations() as op:
        op.tenant_table("refused", sa.Column("id", sa.BigInteger), key=key)


@pytest.mark.parametrize("wrong", ["TRUNCATE", "REFERENCES", "TRIGGER", "ALL", "select", "MAINTAIN"])
def test_a_right_that_no_policy_holds_back_is_refused(
    operations: Callable[[], Any], server: Server, wrong: Any
) -> None:
    """TRUNCATE and its like ignore row level security: refused by field, value and remedy, and nothing is made."""
    message = rf"refused\.actions: '{wrong}': a list of SELECT, INSERT, UPDATE, DELETE"
    with pytest.raises(InvalidSpec, match=message), operations() as op:
        op.tenant_table("refused", sa.Column("id", sa.BigInteger), key=["id"], actions=["SELECT", wrong])
    with server.connect() as admin:
        assert admin.execute("SELECT to_regclass('public.refused')").fetchone() == (None,)
    with pytest.raises(InvalidSpec, match=r"tenant_info\.actions"):
        tenant_table.tenant_info(["SELECT", wrong])
    with pytest.raises(InvalidSpec, match=r"refused\.actions"), operations() as op:
        op.protect_tenant_table("refused", ["id"], actions=["SELECT", wrong])


def test_a_table_in_a_schema_of_its_own_can_be_purged_and_restored(
    operations: Callable[[], Any], server: Server
) -> None:
    """The operator reaches it by its name, to digest and delete a tenant's rows, and to restore its protection."""
    schema = f"sales_{uuid.uuid4().hex[:8]}"
    with operations() as op:
        op.execute(f"CREATE SCHEMA {schema}")
        op.tenant_table("booking", sa.Column("id", sa.BigInteger), key=["id"], schema=schema)
    with server.connect() as admin:
        admin.execute(f"INSERT INTO {schema}.booking (tenant_id, id) VALUES ('tenant_a', 1), ('tenant_b', 2)".encode())
        admin.execute(f"ALTER TABLE {schema}.booking DISABLE ROW LEVEL SECURITY".encode())
    conninfo = server.conninfo("postgres", "flowstone_operator", OPERATOR_PASSWORD)
    with psycopg.connect(conninfo, autocommit=True) as operator:
        assert operator.execute(f"DELETE FROM {schema}.booking WHERE tenant_id = 'tenant_a'".encode()).rowcount == 1
        operator.execute("SELECT flowstone.restore_protection(%s::text::regclass)", [f"{schema}.booking"])
    with server.connect() as admin:
        query = "SELECT relrowsecurity FROM pg_class WHERE oid = %s::text::regclass"
        assert admin.execute(query, [f"{schema}.booking"]).fetchone() == (True,)
        admin.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def test_an_installer_need_not_be_a_superuser(server: Server) -> None:
    """A login that may create roles, and has the owner's rights and a schema of its own, makes a table in it."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    with server.connect() as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{POOL_PASSWORD}' IN ROLE flowstone_owner".encode())
        admin.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}".encode())
    reach = partial(psycopg.connect, server.conninfo("postgres", name, POOL_PASSWORD))
    engine = sa.create_engine("postgresql+psycopg://", creator=reach, poolclass=sa.NullPool)
    with engine.begin() as connection:
        op: Any = Operations(MigrationContext.configure(connection))
        op.tenant_table("booking", sa.Column("id", sa.BigInteger), key=["id"], schema=name)
    with server.connect() as admin:
        query = "SELECT relowner::regrole::text FROM pg_class WHERE oid = %s::text::regclass"
        assert admin.execute(query, [f"{name}.booking"]).fetchone() == ("flowstone_owner",)
        held = "SELECT has_schema_privilege('flowstone_owner', %s, 'CREATE')"
        assert admin.execute(held, [name]).fetchone() == (False,)
        admin.execute(f"DROP SCHEMA {name} CASCADE".encode())
        admin.execute(f"DROP ROLE {name}".encode())
