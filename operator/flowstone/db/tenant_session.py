"""Connections that do tenants' work: psycopg's, synchronous and asynchronous.

A bound connection makes guarded cursors. Before each statement a guarded cursor makes sure, by `tenant_binding`,
that its transaction has the context of the tenant in force; before rows are handed on it checks that they are still
that tenant's. `TenantConnection` also tells its binding when a transaction begins or ends; with any other class the
server is asked before each statement, which costs one round trip.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, Self

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus

from flowstone.db import schema
from flowstone.db.tenant_binding import ENTER, Binding, Entry, Situation
from flowstone.db.tenant_hold import hold, let_go
from flowstone.db.tenant_login import LOGIN_QUERY, OWN_TENANT_QUERY, judge_login
from flowstone.errors import FlowStoneError, LedgerUnavailable, SchemaNotCompatible, TenantRefused, UnsafeLogin
from flowstone.tenant.capability import required
from flowstone.tenant.signing import ContextKeys

_ENDS = frozenset({"BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "DISCARD ALL"})
"""Status words of statements after which the transaction's context may be another one."""


def bind(connection: Any, keys: ContextKeys | None) -> Awaitable[None] | None:
    """See `flowstone.tenant_context.set_tenant_for_query`."""
    required()
    if isinstance(connection, psycopg.Connection):
        _bind(connection, keys)
        return None
    if isinstance(connection, psycopg.AsyncConnection):
        return _bind_async(connection, keys)
    try:
        from flowstone.db import tenant_sqlalchemy
    except ImportError:
        raise TenantRefused(f"{type(connection).__name__} is no connection of psycopg or SQLAlchemy") from None
    return tenant_sqlalchemy.bind(connection, keys)


def make_binding(keys: ContextKeys | None, *, watched: bool) -> Binding:
    """Make a connection's memory; the keys are read when the first context is signed."""
    return Binding(keys, read=ContextKeys.from_environment, clock=time.time, watched=watched)


class TenantConnection(psycopg.Connection[Any]):
    """A psycopg connection that knows its transactions; give it to a pool as `connection_class`."""

    binding: Binding | None = None

    def forget(self) -> None:
        """The context may be gone."""
        if self.binding is not None:
            self.binding.forget()

    def commit(self) -> None:
        """Commit."""
        self.forget()
        super().commit()

    def rollback(self) -> None:
        """Roll back."""
        self.forget()
        super().rollback()

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Transaction]:
        """Begin a transaction, or a savepoint."""
        self.forget()
        try:
            with super().transaction(*args, **kwargs) as transaction:
                yield transaction
        finally:
            self.forget()


class AsyncTenantConnection(psycopg.AsyncConnection[Any]):
    """`TenantConnection` for asyncio."""

    binding: Binding | None = None

    def forget(self) -> None:
        """The context may be gone."""
        if self.binding is not None:
            self.binding.forget()

    async def commit(self) -> None:
        """Commit."""
        self.forget()
        await super().commit()

    async def rollback(self) -> None:
        """Roll back."""
        self.forget()
        await super().rollback()

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Begin a transaction, or a savepoint."""
        self.forget()
        try:
            async with super().transaction(*args, **kwargs) as transaction:
                yield transaction
        finally:
            self.forget()


class GuardedCursor(psycopg.Cursor[Any]):
    """A cursor that works for the tenant in force, or refuses."""

    binding: ClassVar[Binding]

    def execute(self, *args: Any, **kwargs: Any) -> Self:
        """Run a statement for the tenant in force."""
        prepare(self.connection, self.binding)
        super().execute(*args, **kwargs)
        _note(self.binding, self.statusmessage)
        return self

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        """Run a statement for many parameters, for the tenant in force."""
        prepare(self.connection, self.binding)
        super().executemany(*args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Yield rows while the tenant is in force."""
        prepare(self.connection, self.binding)
        for row in super().stream(*args, **kwargs):
            self.binding.check()
            yield row

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        """Copy for the tenant in force."""
        prepare(self.connection, self.binding)
        return super().copy(*args, **kwargs)

    def fetchone(self) -> Any:
        """Return the next row, to the tenant that asked for it."""
        self.binding.check()
        return super().fetchone()

    def fetchmany(self, size: int = 0) -> list[Any]:
        """Return the next rows, to the tenant that asked for them."""
        self.binding.check()
        return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        """Return the other rows, to the tenant that asked for them."""
        self.binding.check()
        return super().fetchall()

    def __next__(self) -> Any:
        self.binding.check()
        return super().__next__()


class AsyncGuardedCursor(psycopg.AsyncCursor[Any]):
    """`GuardedCursor` for asyncio."""

    binding: ClassVar[Binding]

    async def execute(self, *args: Any, **kwargs: Any) -> Self:
        """Run a statement for the tenant in force."""
        await prepare_async(self.connection, self.binding)
        await super().execute(*args, **kwargs)
        _note(self.binding, self.statusmessage)
        return self

    async def executemany(self, *args: Any, **kwargs: Any) -> None:
        """Run a statement for many parameters, for the tenant in force."""
        await prepare_async(self.connection, self.binding)
        await super().executemany(*args, **kwargs)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield rows while the tenant is in force."""
        await prepare_async(self.connection, self.binding)
        async for row in super().stream(*args, **kwargs):
            self.binding.check()
            yield row

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        """Copy for the tenant in force."""
        return self._copy(*args, **kwargs)

    @asynccontextmanager
    async def _copy(self, *args: Any, **kwargs: Any) -> AsyncIterator[psycopg.AsyncCopy]:
        await prepare_async(self.connection, self.binding)
        async with super().copy(*args, **kwargs) as copy:
            yield copy

    async def fetchone(self) -> Any:
        """Return the next row, to the tenant that asked for it."""
        self.binding.check()
        return await super().fetchone()

    async def fetchmany(self, size: int = 0) -> list[Any]:
        """Return the next rows, to the tenant that asked for them."""
        self.binding.check()
        return await super().fetchmany(size)

    async def fetchall(self) -> list[Any]:
        """Return the other rows, to the tenant that asked for them."""
        self.binding.check()
        return await super().fetchall()

    async def __anext__(self) -> Any:
        self.binding.check()
        return await super().__anext__()


def prepare(connection: psycopg.Connection[Any], binding: Binding) -> None:
    """Give the transaction the context it needs before the next statement."""
    if not binding.login_known:
        with _closing_on_error(connection.close):
            _recognise(connection, binding)
    if entry := binding.needed(situation(connection)):
        with _closing_on_error(connection.close):
            row = psycopg.Cursor(connection).execute(ENTER, [entry.context]).fetchone()
        _accept(binding, entry, row)
        hold(connection, binding)


async def prepare_async(connection: psycopg.AsyncConnection[Any], binding: Binding) -> None:
    """Give the transaction the context it needs before the next statement."""
    if not binding.login_known:
        async with _closing_on_error_async(connection.close):
            await _recognise_async(connection, binding)
    if entry := binding.needed(situation(connection)):
        async with _closing_on_error_async(connection.close):
            cursor = await psycopg.AsyncCursor(connection).execute(ENTER, [entry.context])
            row = await cursor.fetchone()
        _accept(binding, entry, row)
        hold(connection, binding)


def situation(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> Situation:
    """Read what the driver knows about the connection, without asking the server."""
    status = connection.info.transaction_status
    return Situation(
        idle=status == TransactionStatus.IDLE,
        failed=status == TransactionStatus.INERROR,
        autocommit=connection.autocommit,
    )


def discard(connection: psycopg.Connection[Any]) -> None:
    """Clear a session before it serves another tenant; give it to a pool as `reset`.

    RESET ALL would leave SET ROLE standing, and temporary tables, prepared statements and held cursors too.
    """
    let_go(connection)
    connection.set_autocommit(True)
    psycopg.Cursor(connection).execute(discard_statement())
    connection.set_autocommit(False)


async def discard_async(connection: psycopg.AsyncConnection[Any]) -> None:
    """Clear a session before it serves another tenant; give it to an asynchronous pool as `reset`."""
    let_go(connection)
    await connection.set_autocommit(True)
    await psycopg.AsyncCursor(connection).execute(discard_statement())
    await connection.set_autocommit(False)


def discard_statement() -> bytes:
    """Return DISCARD ALL, each time as another text.

    psycopg forgets its prepared statements when it sees one, but only at a text it sees for the first time
    (`PrepareManager.maybe_add_to_cache`); the second time it would go on using statements that are gone.
    """
    return f"DISCARD ALL -- {secrets.token_hex(4)}".encode()


def translated(error: psycopg.Error) -> FlowStoneError:
    """Say in FlowStone's words why the context could not be given."""
    if isinstance(error, pg.InsufficientPrivilege):
        return UnsafeLogin("this login may not enter a tenant's context: GRANT flowstone_pool TO it")
    if isinstance(error, pg.UndefinedFunction | pg.InvalidSchemaName | pg.UndefinedTable):
        return SchemaNotCompatible(found=0, needed=schema.head())
    return LedgerUnavailable(f"the tenant's context could not be set: {type(error).__name__}")


def _bind(connection: psycopg.Connection[Any], keys: ContextKeys | None) -> None:
    binding = getattr(connection.cursor_factory, "binding", None)
    if binding is None or keys not in (None, binding.given):
        watched = isinstance(connection, TenantConnection)
        binding = make_binding(keys, watched=watched)
        if isinstance(connection, TenantConnection):
            connection.binding = binding
        connection.cursor_factory = _guarded(GuardedCursor, connection.cursor_factory, binding)
        connection.server_cursor_factory = _guarded(GuardedCursor, connection.server_cursor_factory, binding)
    prepare(connection, binding)


async def _bind_async(connection: psycopg.AsyncConnection[Any], keys: ContextKeys | None) -> None:
    binding = getattr(connection.cursor_factory, "binding", None)
    if binding is None or keys not in (None, binding.given):
        watched = isinstance(connection, AsyncTenantConnection)
        binding = make_binding(keys, watched=watched)
        if isinstance(connection, AsyncTenantConnection):
            connection.binding = binding
        connection.cursor_factory = _guarded(AsyncGuardedCursor, connection.cursor_factory, binding)
        connection.server_cursor_factory = _guarded(AsyncGuardedCursor, connection.server_cursor_factory, binding)
    await prepare_async(connection, binding)


def _guarded(guard: type[Any], factory: type[Any], binding: Binding) -> type[Any]:
    """Derive a cursor class that carries this connection's binding."""
    bases = (factory,) if issubclass(factory, guard) else (guard, factory)
    return type(guard.__name__, bases, {"binding": binding})


def _recognise(connection: psycopg.Connection[Any], binding: Binding) -> None:
    cursor = psycopg.Cursor(connection)
    login = judge_login(cursor.execute(LOGIN_QUERY).fetchone())
    row = cursor.execute(OWN_TENANT_QUERY).fetchone() if login.kind == "tenant" else None
    binding.recognise(login, row[0] if row else None)


async def _recognise_async(connection: psycopg.AsyncConnection[Any], binding: Binding) -> None:
    cursor = psycopg.AsyncCursor(connection)
    login = judge_login(await (await cursor.execute(LOGIN_QUERY)).fetchone())
    row = await (await cursor.execute(OWN_TENANT_QUERY)).fetchone() if login.kind == "tenant" else None
    binding.recognise(login, row[0] if row else None)


def _accept(binding: Binding, entry: Entry, row: Any) -> None:
    binding.accept(entry, row[0] if row else None)


def _note(binding: Binding, status: str | None) -> None:
    """Forget the context when the statement itself began or ended a transaction."""
    if status in _ENDS:
        binding.forget()


@contextmanager
def _closing_on_error(close: Callable[[], None]) -> Iterator[None]:
    """Close the connection when its context may be half set, also when the wait was cancelled."""
    try:
        yield
    except psycopg.Error as error:
        close()
        raise translated(error) from error
    except UnsafeLogin:
        raise
    except BaseException:
        close()
        raise


@asynccontextmanager
async def _closing_on_error_async(close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Close the connection when its context may be half set, also when the wait was cancelled."""
    try:
        yield
    except psycopg.Error as error:
        await close()
        raise translated(error) from error
    except UnsafeLogin:
        raise
    except BaseException:
        await close()
        raise
