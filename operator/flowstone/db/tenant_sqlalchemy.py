"""Connections that do tenants' work: SQLAlchemy's, synchronous and asynchronous, over psycopg.

Events on the one connection tell its binding when a transaction begins or ends, and give the context before each
statement. When the connection goes back to its pool the session is cleared.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from typing import Any, cast

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from flowstone.db import tenant_session
from flowstone.db.tenant_binding import ENTER, Binding, Situation
from flowstone.db.tenant_hold import hold, let_go
from flowstone.db.tenant_login import LOGIN_QUERY, OWN_TENANT_QUERY, judge_login
from flowstone.errors import TenantError, TenantRefused
from flowstone.tenant.signing import ContextKeys

_DRIVERS = frozenset({"psycopg", "psycopg_async"})
_INFO = "flowstone_binding"


def bind(connection: Any, keys: ContextKeys | None) -> Awaitable[None] | None:
    """See `flowstone.tenant_context.set_tenant_for_query`; takes sessions of the ORM too."""
    if isinstance(connection, Connection):
        _bind(connection, keys)
        return None
    if isinstance(connection, Session):
        _bind_session(connection, keys)
        return None
    # SQLAlchemy's asyncio needs an extra; whoever hands over a connection of it has loaded it.
    if asynchronous := sys.modules.get("sqlalchemy.ext.asyncio"):
        if isinstance(connection, asynchronous.AsyncConnection):
            return cast(Awaitable[None], connection.run_sync(_bind, keys))
        if isinstance(connection, asynchronous.AsyncSession):
            return cast(Awaitable[None], connection.run_sync(_bind_session, keys))
    raise TenantRefused(f"{type(connection).__name__} is no connection of psycopg or SQLAlchemy")


def _bind_session(session: Session, keys: ContextKeys | None) -> None:
    """Bind the session's connection, and each one that it takes for a later transaction."""

    def after_begin(_session: Session, _transaction: Any, connection: Connection) -> None:
        _bind(connection, keys)

    if not session.info.get(_INFO):
        session.info[_INFO] = True
        event.listen(session, "after_begin", after_begin)
    _bind(session.connection(), keys)


def _bind(connection: Connection, keys: ContextKeys | None) -> None:
    if connection.dialect.driver not in _DRIVERS:
        raise TenantRefused(
            f"driver {connection.dialect.driver!r} would send the context as text of a statement, where other sessions "
            "can read it: use postgresql+psycopg"
        )
    binding: Binding | None = connection.get_execution_options().get(_INFO)
    fresh = binding is None
    if binding is None or keys not in (None, binding.given):
        binding = tenant_session.make_binding(keys, watched=True)
        connection.execution_options(**{_INFO: binding})
    if fresh:
        _listen(connection)
    _prepare(connection, binding)


def _listen(connection: Connection) -> None:
    def ended(connection: Connection, *_: Any) -> None:
        _binding(connection).forget()

    def before(connection: Connection, *_: Any) -> None:
        _prepare(connection, _binding(connection))

    def after(connection: Connection, cursor: Any, *_: Any) -> None:
        # No rows and no count: it may have been ROLLBACK TO, however it was written.
        if cursor.description is None and cursor.rowcount == -1:
            _binding(connection).forget()

    for name in ("begin", "commit", "rollback", "savepoint", "rollback_savepoint", "release_savepoint"):
        event.listen(connection, name, ended)
    event.listen(connection, "before_cursor_execute", before)
    event.listen(connection, "after_cursor_execute", after)
    pool = connection.engine.pool
    if not event.contains(pool, "reset", _reset):
        event.listen(pool, "reset", _reset)


def _binding(connection: Connection) -> Binding:
    binding: Binding = connection.get_execution_options()[_INFO]
    return binding


def _prepare(connection: Connection, binding: Binding) -> None:
    """Give the transaction its context; a connection on which that failed is thrown away."""
    connection.info[_INFO] = True  # what _reset looks for
    try:
        if not binding.login_known:
            _recognise(connection, binding)
        if entry := binding.needed(_situation(connection)):
            binding.accept(entry, _ask(connection, ENTER, [entry.context])[0])
            hold(_driver(connection), binding)
    except TenantError:
        raise
    except psycopg.Error as error:
        connection.invalidate()
        raise tenant_session.translated(error) from error
    except BaseException:
        connection.invalidate()
        raise


def _situation(connection: Connection) -> Situation:
    return tenant_session.situation(_driver(connection))


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _recognise(connection: Connection, binding: Binding) -> None:
    login = judge_login(_ask(connection, LOGIN_QUERY))
    own = _ask(connection, OWN_TENANT_QUERY) if login.kind == "tenant" else None
    binding.recognise(login, own[0] if own else None)


def _ask(connection: Connection, query: str, parameters: list[str] | None = None) -> Any:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(query, parameters)
        return cursor.fetchone()
    finally:
        cursor.close()


def _reset(dbapi_connection: Any, record: Any, state: Any) -> None:
    """Clear a session that worked for tenants before another checkout gets it."""
    if record is None or record.info.pop(_INFO, None) is None or state.terminate_only:
        return
    let_go(getattr(dbapi_connection, "driver_connection", dbapi_connection))
    dbapi_connection.rollback()
    before, dbapi_connection.autocommit = dbapi_connection.autocommit, True
    cursor = dbapi_connection.cursor()
    cursor.execute(tenant_session.discard_statement())
    cursor.close()
    dbapi_connection.autocommit = before
