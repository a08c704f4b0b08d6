"""set_tenant_for_query with SQLAlchemy: connections and sessions, synchronous and asynchronous."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from flowstone.errors import LedgerUnavailable, TenantRefused, TenantRequired, UnsafeLogin
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant_context import set_tenant_for_query, with_tenant
from tests.postgres.servers import Server
from tests.postgres.tenant.conftest import OPERATOR_PASSWORD, POOL_PASSWORD

pytestmark = pytest.mark.postgres
COUNT = text("SELECT count(*) FROM public.note")


def url(server: Server, user: str = "app", password: str = POOL_PASSWORD) -> URL:
    """Return the address of a login."""
    return URL.create("postgresql+psycopg", user, password, "127.0.0.1", server.port, "postgres")


@pytest.fixture
def engine(server: Server, keys: ContextKeys) -> Iterator[Engine]:
    """An engine over one pooled connection."""
    engine = create_engine(url(server), pool_size=1, max_overflow=0)
    yield engine
    engine.dispose()


def count(connection: Connection | Session) -> int:
    """Return how many notes are seen."""
    value: int = connection.execute(COUNT).scalar_one()
    return value


def test_each_tenant_sees_its_rows_over_commits_and_checkouts(engine: Engine, keys: ContextKeys) -> None:
    """On one pooled connection each tenant sees its own rows, after commits and after the other tenant's checkout."""
    for tenant, notes in (("tenant_a", 1), ("tenant_b", 2), ("tenant_a", 1)):
        with with_tenant(tenant), engine.connect() as connection:
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == notes
            connection.commit()
            assert count(connection) == notes


def test_a_bound_connection_needs_the_tenant_that_began(engine: Engine, keys: ContextKeys) -> None:
    """Without a tenant it raises, and in another tenant's block too, until its transaction has ended."""
    with engine.connect() as connection:
        with with_tenant("tenant_a"):
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 1
        with pytest.raises(TenantRequired):
            count(connection)
        with with_tenant("tenant_b"):
            with pytest.raises(TenantRefused, match="another tenant"):
                count(connection)
            connection.rollback()
            assert count(connection) == 2


def test_an_unbound_connection_sees_nothing(engine: Engine, keys: ContextKeys) -> None:
    """A connection of the same pool that was never bound sees no row, whatever was set before on its session."""
    with with_tenant("tenant_a"), engine.connect() as connection:
        set_tenant_for_query(connection, keys=keys)
        connection.execute(text("SELECT set_config('flowstone.context', current_setting('flowstone.context'), false)"))
        connection.commit()
    with with_tenant("tenant_b"), engine.connect() as connection:
        assert count(connection) == 0


def test_savepoints_keep_the_tenant(engine: Engine, keys: ContextKeys) -> None:
    """Nested transactions, released and rolled back, leave the context in force."""
    with with_tenant("tenant_b"), engine.connect() as connection, connection.begin():
        with connection.begin_nested() as nested:
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 2
            nested.rollback()
        assert count(connection) == 2
        with connection.begin_nested():
            connection.execute(text("INSERT INTO public.note (id) VALUES (77)"))
        assert count(connection) == 3
        connection.execute(text("/* by hand */ SAVEPOINT mine"))
        connection.execute(text("/* by hand */ ROLLBACK TO mine"))
        assert count(connection) == 3
        connection.get_transaction().rollback()  # type: ignore[union-attr]  # it was begun above


def test_autocommit_and_other_drivers_are_refused(engine: Engine, server: Server, keys: ContextKeys) -> None:
    """AUTOCOMMIT would make the context void; a driver that sends parameters as text would show it to others."""
    with with_tenant("tenant_a"):
        options = {"isolation_level": "AUTOCOMMIT"}
        with engine.connect().execution_options(**options) as connection, pytest.raises(TenantRefused, match="autoc"):
            set_tenant_for_query(connection, keys=keys)
        sqlite = create_engine("sqlite://")
        with sqlite.connect() as other, pytest.raises(TenantRefused, match="psycopg"):
            set_tenant_for_query(other, keys=keys)
        sqlite.dispose()
        with pytest.raises(TenantRefused, match="no connection"):
            set_tenant_for_query(engine, keys=keys)  # type: ignore[call-overload]  # an engine is none


def test_the_operators_login_is_refused(server: Server, keys: ContextKeys) -> None:
    """A login that sees past row level security is refused here too."""
    operator = create_engine(url(server, "flowstone_operator", OPERATOR_PASSWORD))
    with with_tenant("tenant_a"), operator.connect() as connection, pytest.raises(UnsafeLogin):
        set_tenant_for_query(connection, keys=keys)
    operator.dispose()


def test_a_connection_that_broke_is_invalidated(engine: Engine, server: Server, keys: ContextKeys) -> None:
    """When the context cannot be set the connection is thrown away, and the next checkout gets a good one."""
    with with_tenant("tenant_a"):
        with engine.connect() as connection:
            set_tenant_for_query(connection, keys=keys)
            connection.rollback()
            pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]  # psycopg's
            with server.connect() as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(LedgerUnavailable):
                count(connection)
            assert connection.invalidated
        with engine.connect() as connection:
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 1


def test_a_session_stays_bound_over_its_commits(engine: Engine, keys: ContextKeys) -> None:
    """An ORM session takes another connection after each commit, and stays bound."""
    with with_tenant("tenant_b"), Session(engine) as session:
        set_tenant_for_query(session, keys=keys)  # type: ignore[call-overload]  # typed for connections
        assert count(session) == 2
        session.commit()
        assert count(session) == 2
        with session.begin_nested():
            assert count(session) == 2
        assert count(session) == 2


async def test_asynchronous_connections_and_sessions(server: Server, keys: ContextKeys) -> None:
    """The same over asyncio: rows, switch between transactions, refusal inside one, a clean session afterwards."""
    engine = create_async_engine(url(server), pool_size=1, max_overflow=0)
    async with engine.connect() as connection:
        with with_tenant("tenant_a"):
            await set_tenant_for_query(connection, keys=keys)
            assert (await connection.execute(COUNT)).scalar_one() == 1
            await connection.commit()
        with with_tenant("tenant_b"):
            assert (await connection.execute(COUNT)).scalar_one() == 2
        with with_tenant("tenant_a"), pytest.raises(TenantRefused):
            await connection.execute(COUNT)
    async with engine.connect() as connection:
        assert (await connection.execute(COUNT)).scalar_one() == 0
        assert (await connection.execute(text("SHOW flowstone.context"))).scalar_one() == ""
    async with AsyncSession(engine) as session:
        with with_tenant("tenant_b"):
            await set_tenant_for_query(session, keys=keys)  # type: ignore[call-overload]  # typed for connections
            assert (await session.execute(COUNT)).scalar_one() == 2
            await session.commit()
            assert (await session.execute(COUNT)).scalar_one() == 2
            await session.rollback()
    await engine.dispose()


def test_the_event_is_one_per_connection(engine: Engine, keys: ContextKeys) -> None:
    """Binding again and again does not add listeners: a statement costs the same number of round trips."""
    statements: list[str] = []
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with with_tenant("tenant_a"), engine.connect() as connection:
        for _ in range(5):
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 1
    assert len(statements) == 5


def test_what_goes_around_the_guard_finds_nothing_after_the_block(engine: Engine, keys: ContextKeys) -> None:
    """The driver's own cursors see no row once the block has ended, and a streamed result delivers no more rows; what
    was written before can be committed."""
    streamed = text("SELECT tenant_id, repeat('x', 1000) FROM public.note, generate_series(1, 5000)")
    with engine.connect() as connection:
        with with_tenant("tenant_a"):
            set_tenant_for_query(connection, keys=keys)
            connection.execute(text("INSERT INTO public.note (id) VALUES (66)"))
            rows = connection.execution_options(stream_results=True, max_row_buffer=10).execute(streamed)
            rows.fetchone()
        raw = connection.connection.cursor()
        raw.execute("SELECT count(*) FROM public.note")
        assert raw.fetchone() == (0,)
        rows.close()
        connection.commit()
    with with_tenant("tenant_a"), engine.connect() as connection:
        set_tenant_for_query(connection, keys=keys)
        assert connection.execute(text("DELETE FROM public.note WHERE id = 66")).rowcount == 1
        connection.commit()
    with engine.connect() as connection:
        with with_tenant("tenant_a"):
            set_tenant_for_query(connection, keys=keys)
            rows = connection.execution_options(stream_results=True, max_row_buffer=10).execute(streamed)
            rows.fetchone()
        with with_tenant("tenant_b"), pytest.raises(sqlalchemy.exc.ProgrammingError, match="block that has ended"):
            rows.fetchall()
