"""set_tenant_for_query with psycopg: the context follows transactions, savepoints, cursors, tasks and pools."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest

from flowstone.db.tenant_binding import ENTER
from flowstone.db.tenant_session import (
    AsyncTenantConnection,
    TenantConnection,
    discard,
    discard_async,
)
from flowstone.errors import (
    LedgerUnavailable,
    SchemaNotCompatible,
    TenantRefused,
    TenantRequired,
    TenantUnknown,
    UnsafeLogin,
)
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant_context import set_tenant_for_query, with_tenant
from tests.postgres.servers import Server
from tests.postgres.tenant.conftest import OPERATOR_PASSWORD, POOL_PASSWORD

pytestmark = pytest.mark.postgres
COUNT = "SELECT count(*) FROM public.note"
Plain = psycopg.Connection[Any]


@pytest.fixture(params=[psycopg.Connection, TenantConnection], ids=["plain", "tenant"])
def connect(request: pytest.FixtureRequest, server: Server, keys: ContextKeys) -> Callable[..., Plain]:
    """Open a connection of either class; it is closed after the test."""

    def open_one(**options: Any) -> Plain:
        connection: Plain = request.param.connect(server.conninfo("postgres", "app", POOL_PASSWORD), **options)
        request.addfinalizer(connection.close)
        return connection

    return open_one


def count(connection: Plain) -> int:
    """Return how many notes this connection sees."""
    row = connection.execute(COUNT).fetchone()
    assert row is not None
    value: int = row[0]
    return value


def test_each_tenant_sees_its_rows_alone(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """tenant_a has one note and tenant_b two; each sees its own, over commits, on one connection."""
    connection = connect()
    for tenant, notes in (("tenant_a", 1), ("tenant_b", 2), ("tenant_a", 1)):
        with with_tenant(tenant):
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == notes
            connection.commit()
            assert count(connection) == notes
            connection.commit()


def test_without_a_tenant_python_raises_and_sql_sees_nothing(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """Outside the block a bound connection raises; a cursor made around the guard sees no row and writes none."""
    connection = connect()
    with pytest.raises(TenantRequired):
        set_tenant_for_query(connection, keys=keys)
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        assert count(connection) == 1
        connection.rollback()
    with pytest.raises(TenantRequired):
        connection.execute(COUNT)
    bare = psycopg.Cursor(connection)
    assert bare.execute(COUNT).fetchone() == (0,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        bare.execute("INSERT INTO public.note VALUES ('tenant_a', 99)")


def test_the_default_and_the_check_keep_writes_at_home(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """A row without a tenant is the tenant's own; one for somebody else is refused; others' rows are out of reach."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        row = connection.execute("INSERT INTO public.note (id) VALUES (7) RETURNING tenant_id").fetchone()
        assert row == ("tenant_a",)
        assert connection.execute("UPDATE public.note SET id = id + 100").rowcount == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO public.note VALUES ('tenant_b', 8)")
        connection.rollback()


def test_another_tenant_cannot_take_over_an_open_transaction(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """Inside tenant_a's transaction a block of tenant_b may neither bind nor use the connection; a's goes on."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        assert count(connection) == 1
        with with_tenant("tenant_b"):
            with pytest.raises(TenantRefused, match="another tenant"):
                set_tenant_for_query(connection)
            with pytest.raises(TenantRefused, match="another tenant"):
                connection.execute(COUNT)
        assert count(connection) == 1
        connection.rollback()


def test_a_savepoint_is_not_given_to_another_tenant(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """What tenant_a's transaction holds is committed as one, so tenant_b gets no savepoint of it, during and after a's
    block, by no cursor."""

    def tenant_b_tries() -> None:
        with with_tenant("tenant_b"), connection.transaction():
            with pytest.raises(TenantRefused, match="another tenant"):
                connection.execute(COUNT)
            assert psycopg.Cursor(connection).execute(COUNT).fetchone() == (0,)

    connection = connect()
    with connection.transaction(force_rollback=True):
        with with_tenant("tenant_a"):
            set_tenant_for_query(connection, keys=keys)
            connection.execute("INSERT INTO public.note (id) VALUES (66)")
            tenant_b_tries()
            assert count(connection) == 2
        tenant_b_tries()
        with with_tenant("tenant_a"):
            assert count(connection) == 2


@pytest.mark.parametrize("fails", [False, True], ids=["released", "rolled back"])
def test_a_savepoint_keeps_the_tenant(connect: Callable[..., Plain], keys: ContextKeys, fails: bool) -> None:
    """First used inside a savepoint, released or rolled back, the context holds inside, and outside afterwards."""
    connection = connect()
    with with_tenant("tenant_a"), connection.transaction():
        try:
            with connection.transaction():
                set_tenant_for_query(connection, keys=keys)
                assert count(connection) == 1
                if fails:
                    raise psycopg.Rollback
        except KeyError:
            raise AssertionError from None
        assert count(connection) == 1


def test_a_savepoint_written_as_sql_is_noticed(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """ROLLBACK TO undoes a context that was set after the savepoint; the next statement gives it again."""
    connection = connect()
    psycopg.Cursor(connection).execute("SAVEPOINT before")
    with with_tenant("tenant_b"):
        set_tenant_for_query(connection, keys=keys)
        assert count(connection) == 2
        connection.execute("ROLLBACK TO SAVEPOINT before")
        assert count(connection) == 2
        connection.execute("ROLLBACK")
        assert count(connection) == 2
        connection.rollback()


def test_an_explicit_transaction_after_the_first_one_has_the_context_too(
    connect: Callable[..., Plain], keys: ContextKeys
) -> None:
    """A transaction() begun without a cursor is as good as one begun by a statement, and may be another tenant's."""
    connection = connect()
    for tenant, notes in (("tenant_a", 1), ("tenant_b", 2)):
        with with_tenant(tenant):
            set_tenant_for_query(connection, keys=keys)
            connection.commit()
            with connection.transaction():
                assert count(connection) == notes


def test_autocommit_is_refused(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """In autocommit a context would be void at once: refused when binding and at use; a transaction block is fine."""
    connection = connect(autocommit=True)
    with with_tenant("tenant_b"):
        with pytest.raises(TenantRefused, match="autocommit"):
            set_tenant_for_query(connection, keys=keys)
        with connection.transaction():
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 2
        with pytest.raises(TenantRefused, match="autocommit"):
            connection.execute(COUNT)


def test_a_held_cursor_does_not_reach_the_next_tenant(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """A cursor WITH HOLD carries rows over the commit, so while one is open nobody else's work begins."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        connection.execute("DECLARE held CURSOR WITH HOLD FOR SELECT * FROM public.note")
        connection.commit()
    with with_tenant("tenant_b"):
        with pytest.raises(TenantRefused, match="cursor is open"):
            connection.execute("FETCH ALL FROM held")
        connection.rollback()
        psycopg.Cursor(connection).execute("CLOSE held")
        connection.commit()
        assert count(connection) == 2
        connection.rollback()


def test_rows_are_not_handed_to_another_tenant(
    connect: Callable[..., Plain], keys: ContextKeys, request: pytest.FixtureRequest
) -> None:
    """Rows that a cursor fetched for tenant_a are not given out in tenant_b's block, nor without a tenant."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        client = connection.execute("SELECT * FROM public.note")
        server_side = connection.cursor("named")
        server_side.execute("SELECT * FROM public.note")
        request.addfinalizer(server_side.close)
    for cursor in (client, server_side):
        with pytest.raises(TenantRequired):
            cursor.fetchone()
        with pytest.raises(TenantRequired):
            next(iter(cursor))
        with with_tenant("tenant_b"), pytest.raises(TenantRefused):
            cursor.fetchall()
    with with_tenant("tenant_a"):
        assert client.fetchmany(5) == [("tenant_a", 1)]
        with pytest.raises(psycopg.errors.UndefinedObject, match="with_tenant block that has ended"):
            server_side.fetchone()
    connection.rollback()


MAKERS = [lambda connection: connection.cursor(), psycopg.Cursor, psycopg.ClientCursor]


@pytest.mark.parametrize("maker", MAKERS, ids=["earlier", "by hand", "client's"])
def test_a_cursor_around_the_guard_finds_no_context_after_the_block(
    connect: Callable[..., Plain], keys: ContextKeys, maker: Callable[[Plain], psycopg.Cursor[Any]]
) -> None:
    """Made before the connection was bound, or by hand: after the block, and in another tenant's, it sees nothing and
    writes nothing, and the transaction is not given to another tenant."""
    connection = connect()
    cursor = maker(connection)
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        assert cursor.execute(COUNT).fetchone() == (1,)
        with with_tenant("tenant_b"):
            assert cursor.execute(COUNT).fetchone() == (0,)
            with with_tenant("tenant_a"):
                assert cursor.execute(COUNT).fetchone() == (0,)
        assert cursor.execute(COUNT).fetchone() == (1,)
    assert cursor.execute(COUNT).fetchone() == (0,)
    with with_tenant("tenant_b"):
        assert cursor.execute(COUNT).fetchone() == (0,)
        with pytest.raises(TenantRefused, match="another tenant"):
            set_tenant_for_query(connection)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            cursor.execute("INSERT INTO public.note VALUES ('tenant_a', 98)")
        connection.rollback()
        assert count(connection) == 2
        connection.rollback()


def test_leaving_a_block_keeps_the_transaction(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """What the tenant wrote is still there to be committed; a failed or closed connection makes no new error."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        connection.execute("INSERT INTO public.note (id) VALUES (55)")
    connection.commit()
    with with_tenant("tenant_a"):
        assert connection.execute("DELETE FROM public.note WHERE id = 55").rowcount == 1
        connection.commit()
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
    connection.rollback()
    with with_tenant("tenant_a"):
        assert count(connection) == 1
        connection.close()


def test_a_connection_in_use_at_the_end_of_the_block_is_cut(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """In a pipeline or a half-read stream the context cannot be taken off: nothing more comes over that connection."""
    piped, read = connect(), connect()

    def late() -> None:
        with piped.pipeline():
            with with_tenant("tenant_a"):
                set_tenant_for_query(piped, keys=keys)
            psycopg.Cursor(piped).execute(COUNT).fetchone()

    with pytest.raises(psycopg.OperationalError):
        late()
    with with_tenant("tenant_b"):
        set_tenant_for_query(read, keys=keys)
        rows = psycopg.Cursor(read).stream("SELECT repeat('x', 1000000) FROM generate_series(1, 50)")
        next(rows)
    with pytest.raises(psycopg.OperationalError):
        list(rows)


async def test_an_async_cursor_around_the_guard_finds_no_context_either(server: Server, keys: ContextKeys) -> None:
    """A plain `with` ends the context of an asynchronous connection as well, in nested blocks too."""
    login = server.conninfo("postgres", "app", POOL_PASSWORD)
    async with await psycopg.AsyncConnection.connect(login) as connection:
        cursor = connection.cursor()

        async def seen() -> Any:
            return await (await cursor.execute(COUNT)).fetchone()

        with with_tenant("tenant_a"):
            await set_tenant_for_query(connection, keys=keys)
            async with with_tenant("tenant_b"):
                assert await seen() == (0,)
            assert await seen() == (1,)
        assert await seen() == (0,)


def test_streams_copies_and_batches_work_for_the_tenant(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """stream, copy to, and executemany run under the context like execute does, as first statements too."""
    connection = connect()
    with with_tenant("tenant_b"):
        set_tenant_for_query(connection, keys=keys)
        connection.rollback()
        assert len(list(connection.cursor().stream("SELECT * FROM public.note"))) == 2
        connection.rollback()
        with connection.cursor().copy("COPY (SELECT id FROM public.note ORDER BY id) TO STDOUT") as copy:
            assert b"".join(bytes(part) for part in copy) == b"1\n2\n"
        connection.rollback()
        cursor = connection.cursor()
        cursor.executemany("INSERT INTO public.note (id) VALUES (%s)", [(10,), (11,)])
        assert count(connection) == 4
        connection.rollback()


@pytest.mark.parametrize("forge", ["expired", "tampered", "unsigned", "longer", "foreign", "odd", "empty", "huge"])
def test_a_context_that_is_not_ours_is_refused_and_shows_nothing(
    connect: Callable[..., Plain], keys: ContextKeys, forge: str
) -> None:
    """Expired, tampered with, unsigned or malformed: the context is refused, and set by force it shows no row."""
    soon = int(time.time()) + 60
    good = keys.sign("tenant_a", soon)
    contexts = {
        "expired": keys.sign("tenant_a", soon - 61),
        "tampered": good.replace("tenant_a", "tenant_b"),
        "unsigned": f"{keys.scope('tenant_a')}.{soon}.{'0' * 64}",
        "longer": good.replace(str(soon), str(soon + 1)),
        "foreign": ContextKeys.generate().sign("tenant_a", soon),
        "odd": "\N{GREEK SMALL LETTER ALPHA}" * 100,
        "empty": "",
        "huge": "x" * 100_000 + good,
    }
    cursor = psycopg.Cursor(connect())
    assert cursor.execute(ENTER, [good]).fetchone() == ("entered",)
    cursor.connection.rollback()
    assert cursor.execute(ENTER, [contexts[forge]]).fetchone() == ("refused",)
    cursor.execute("SELECT set_config('flowstone.context', %s, true)", [contexts[forge]])
    assert cursor.execute(COUNT).fetchone() == (0,)


def test_unknown_tenants_and_foreign_keys_are_refused(connect: Callable[..., Plain], keys: ContextKeys) -> None:
    """A tenant that is not registered is unknown; a key that the database does not know is refused; no id is told."""
    with with_tenant("stranger"), pytest.raises(TenantUnknown) as caught:
        set_tenant_for_query(connect(), keys=keys)
    assert "stranger" not in str(caught.value)
    with with_tenant("tenant_a"), pytest.raises(TenantRefused, match="did not accept") as refused:
        set_tenant_for_query(connect(), keys=ContextKeys.generate())
    assert "tenant_a" not in str(refused.value)


def test_a_suspended_tenant_is_shut_out_at_once(
    connect: Callable[..., Plain], server: Server, keys: ContextKeys
) -> None:
    """Suspension ends even a context that is already set: the open transaction sees no rows from then on."""
    connection = connect()
    with server.connect() as admin, with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        assert count(connection) == 1
        admin.execute("UPDATE flowstone.tenant SET state = 'suspended' WHERE tenant_id = 'tenant_a'")
        try:
            assert psycopg.Cursor(connection).execute(COUNT).fetchone() == (0,)
            connection.rollback()
            with pytest.raises(TenantUnknown):
                connection.execute(COUNT)
        finally:
            admin.execute("UPDATE flowstone.tenant SET state = 'active' WHERE tenant_id = 'tenant_a'")


def test_a_dying_session_is_closed(connect: Callable[..., Plain], server: Server, keys: ContextKeys) -> None:
    """When setting the context fails because the session was ended, the connection is closed and the error says so."""
    connection = connect()
    with with_tenant("tenant_a"):
        set_tenant_for_query(connection, keys=keys)
        connection.rollback()
        with server.connect() as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        with pytest.raises(LedgerUnavailable):
            connection.execute(COUNT)
        assert connection.closed


def test_two_keys_are_known_while_one_is_rotated(server: Server, keys: ContextKeys) -> None:
    """With the new and the old key installed both sign; with the new one alone the old one is refused."""
    from flowstone.db.context_keys import install_context_keys

    new = ContextKeys.generate()
    both = ContextKeys((new.keys[0], keys.keys[0]))
    with server.connect() as admin, with_tenant("tenant_a"):
        try:
            assert install_context_keys(admin, both)
            for signed_by in (keys, new, both):
                with psycopg.connect(server.conninfo("postgres", "app", POOL_PASSWORD)) as connection:
                    set_tenant_for_query(connection, keys=signed_by)
            assert install_context_keys(admin, new)
            with (
                psycopg.connect(server.conninfo("postgres", "app", POOL_PASSWORD)) as connection,
                pytest.raises(TenantRefused),
            ):
                set_tenant_for_query(connection, keys=keys)
        finally:
            install_context_keys(admin, keys)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("SUPERUSER", "superuser"),
        ("BYPASSRLS", "BYPASSRLS"),
        ("CREATEROLE", "CREATEROLE"),
        ("REPLICATION", "REPLICATION"),
        ("IN ROLE flowstone_owner", "may become"),
        ("IN ROLE flowstone_operator", "may become"),
        ("IN ROLE pg_execute_server_program", "may become"),
        ("IN ROLE flowstone_tenant", "both"),
    ],
)
def test_a_login_that_sees_past_row_security_is_refused(
    server: Server, keys: ContextKeys, attributes: str, reason: str
) -> None:
    """A pooled login with any way around the policies is refused with that way named, and the remedy."""
    words = f"IN ROLE flowstone_pool{attributes.replace('IN ROLE', ',')}" if "IN ROLE" in attributes else attributes
    options = words if "IN ROLE" in words else f"{words} IN ROLE flowstone_pool"
    with server.connect() as admin:
        admin.execute(f"CREATE ROLE unsafe LOGIN PASSWORD '{POOL_PASSWORD}' {options}")
        try:
            with (
                psycopg.connect(server.conninfo("postgres", "unsafe", POOL_PASSWORD)) as connection,
                with_tenant("tenant_a"),
                pytest.raises(UnsafeLogin, match=reason),
            ):
                set_tenant_for_query(connection, keys=keys)
        finally:
            admin.execute("DROP ROLE unsafe")


def test_an_owner_of_a_protected_table_is_refused(server: Server, keys: ContextKeys) -> None:
    """The owner of a table with policies could switch them off, so it is refused too."""
    with server.connect() as admin:
        admin.execute(f"CREATE ROLE owns LOGIN PASSWORD '{POOL_PASSWORD}' IN ROLE flowstone_pool")
        admin.execute("CREATE TABLE public.owned (id int)")
        admin.execute("ALTER TABLE public.owned ENABLE ROW LEVEL SECURITY")
        admin.execute("ALTER TABLE public.owned OWNER TO owns")
        try:
            with (
                psycopg.connect(server.conninfo("postgres", "owns", POOL_PASSWORD)) as connection,
                with_tenant("tenant_a"),
                pytest.raises(UnsafeLogin, match="owns a protected table"),
            ):
                set_tenant_for_query(connection, keys=keys)
        finally:
            admin.execute("DROP TABLE public.owned")
            admin.execute("DROP ROLE owns")


def test_the_operator_and_strangers_are_refused(server: Server, keys: ContextKeys) -> None:
    """The operator's login and one of no group are refused; a database without the schema says to migrate."""
    with with_tenant("tenant_a"):
        login = server.conninfo("postgres", "flowstone_operator", OPERATOR_PASSWORD)
        with psycopg.connect(login) as connection, pytest.raises(UnsafeLogin):
            set_tenant_for_query(connection, keys=keys)
        with server.connect() as admin:
            admin.execute(f"CREATE ROLE stranger LOGIN PASSWORD '{POOL_PASSWORD}'")
            try:
                login = server.conninfo("postgres", "stranger", POOL_PASSWORD)
                with psycopg.connect(login) as connection, pytest.raises(UnsafeLogin, match="GRANT flowstone_pool"):
                    set_tenant_for_query(connection, keys=keys)
            finally:
                admin.execute("DROP ROLE stranger")
        login = server.conninfo("template1", "app", POOL_PASSWORD)
        with psycopg.connect(login) as connection, pytest.raises(SchemaNotCompatible):
            set_tenant_for_query(connection, keys=keys)


def test_a_pools_next_user_finds_a_clean_session(server: Server, keys: ContextKeys) -> None:
    """Temporary tables, settings, prepared statements and held cursors of one tenant are gone at the next checkout."""
    with psycopg_pool.ConnectionPool(
        server.conninfo("postgres", "app", POOL_PASSWORD),
        connection_class=TenantConnection,
        min_size=1,
        max_size=1,
        reset=discard,
        open=True,
    ) as pool:
        with with_tenant("tenant_a"), pool.connection() as connection:
            set_tenant_for_query(connection, keys=keys)
            connection.execute("SET search_path = pg_temp")
            connection.execute("SELECT set_config('flowstone.context', current_setting('flowstone.context'), false)")
            connection.execute("PREPARE planted AS SELECT 1")
            connection.execute("DECLARE held CURSOR WITH HOLD FOR SELECT * FROM public.note")
            pid = connection.info.backend_pid
        with with_tenant("tenant_b"), pool.connection() as connection:
            assert connection.info.backend_pid == pid
            set_tenant_for_query(connection, keys=keys)
            assert count(connection) == 2
            assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)
            query = "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors)"
            assert psycopg.Cursor(connection).execute(query, prepare=False).fetchone() == (0, 0)


async def test_concurrent_tasks_over_a_small_pool(server: Server, keys: ContextKeys) -> None:
    """Forty tasks of two tenants over three connections, some cancelled at random points: each sees its own rows."""
    pool: psycopg_pool.AsyncConnectionPool[AsyncTenantConnection] = psycopg_pool.AsyncConnectionPool(
        server.conninfo("postgres", "app", POOL_PASSWORD),
        connection_class=AsyncTenantConnection,
        min_size=1,
        max_size=3,
        reset=discard_async,
        open=False,
    )
    expected = {"tenant_a": 1, "tenant_b": 2}

    async def work(tenant: str) -> bool:
        with with_tenant(tenant):
            async with pool.connection() as connection:
                await set_tenant_for_query(connection, keys=keys)
                for _ in range(3):
                    row = await (await connection.execute(COUNT)).fetchone()
                    assert row == (expected[tenant],)
                    await connection.commit()
        return True

    async with pool:
        tasks = [asyncio.create_task(work(("tenant_a", "tenant_b")[n % 2])) for n in range(40)]
        for number, task in enumerate(tasks[::5]):
            asyncio.get_running_loop().call_later(0.002 * number, task.cancel)
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one for one in done if one is not True and not isinstance(one, asyncio.CancelledError)] == []
    assert done.count(True) >= 32


async def test_a_shared_async_connection_refuses_the_other_tasks_tenant(server: Server, keys: ContextKeys) -> None:
    """Two tasks of two tenants on one connection: the one that did not begin the transaction is refused."""
    login = server.conninfo("postgres", "app", POOL_PASSWORD)
    async with await AsyncTenantConnection.connect(login) as connection:
        with with_tenant("tenant_a"):
            await set_tenant_for_query(connection, keys=keys)
            cursor = await connection.execute("SELECT id FROM public.note")

        async def intrude() -> None:
            with with_tenant("tenant_b"):
                await connection.execute(COUNT)

        with pytest.raises(TenantRefused, match="another tenant"):
            await asyncio.create_task(intrude())
        with pytest.raises(TenantRequired):
            await cursor.fetchone()
        with with_tenant("tenant_a"):
            assert [row async for row in cursor] == [(1,)]
            assert [row async for row in connection.cursor().stream("SELECT id FROM public.note")] == [(1,)]
            async with connection.cursor().copy("COPY (SELECT id FROM public.note) TO STDOUT") as copy:
                assert b"".join([bytes(part) async for part in copy]) == b"1\n"


async def until_it_sleeps(admin: Plain, pid: int) -> None:
    """Wait until that session is inside pg_sleep."""
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    while admin.execute(query, [pid]).fetchone() is None:  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0.01)


async def test_a_cancelled_statement_leaves_no_tenant_behind(server: Server, keys: ContextKeys) -> None:
    """Cancelled while a statement runs, the connection works for the next tenant after a rollback."""
    login = server.conninfo("postgres", "app", POOL_PASSWORD)
    async with await AsyncTenantConnection.connect(login) as connection:

        async def slow() -> None:
            with with_tenant("tenant_a"):
                await set_tenant_for_query(connection, keys=keys)
                await connection.execute("SELECT pg_sleep(30)")

        task = asyncio.create_task(slow())
        with server.connect() as admin:
            await until_it_sleeps(admin, connection.info.backend_pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.rollback()
        with with_tenant("tenant_b"):
            assert await (await connection.execute(COUNT)).fetchone() == (2,)


def test_the_context_is_never_text_of_a_statement(server: Server, keys: ContextKeys) -> None:
    """Another session of the same role sees the statement in pg_stat_activity without the context in it."""
    login = server.conninfo("postgres", "app", POOL_PASSWORD)
    query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
    with (
        psycopg.connect(login, cursor_factory=psycopg.ClientCursor) as connection,
        psycopg.connect(login) as other,
        with_tenant("tenant_a"),
    ):
        set_tenant_for_query(connection, keys=keys)
        seen = other.execute(query, [connection.info.backend_pid]).fetchone()
        assert seen == ("SELECT flowstone.enter_tenant($1)",)
