"""Whose work this is: `with_tenant`, `current_tenant`, `set_tenant_for_query`.

    with with_tenant("acme"):
        set_tenant_for_query(connection)
        connection.execute("SELECT ...")        # sees and writes acme's rows, and nobody else's

The tenant follows into awaited code, into tasks created inside the block and into `asyncio.to_thread`, and ends for
all of them when the block ends. A thread that was started plainly has no tenant: `carry_tenant` passes it on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from flowstone.errors import TenantRefused
from flowstone.tenant import capability as _capability
from flowstone.tenant.signing import ContextKeys

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.engine import Connection as SqlConnection
    from sqlalchemy.ext.asyncio import AsyncConnection as SqlAsyncConnection

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["carry_tenant", "current_tenant", "set_tenant_for_query", "with_tenant"]


class with_tenant:  # noqa: N801 - reads as a statement, like contextlib's own
    """Work for one tenant: a context manager (also `async with`) and a decorator.

    As a decorator it serves functions, coroutines, generators and asynchronous generators; a generator has the tenant
    while it runs and not while it is suspended.

    Args:
        tenant_id: The tenant's id.

    Raises:
        TenantRefused: This is no tenant id.
    """

    def __init__(self, tenant_id: str) -> None:
        self._tenant_id = _capability.checked_tenant_id(tenant_id)
        self._entered: _capability.Capability | None = None

    def __enter__(self) -> str:
        if self._entered is not None:
            raise RuntimeError("this with_tenant block is already entered: write with_tenant(id) once per block")
        self._entered = _capability.enter(self._tenant_id)
        return self._tenant_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered, self._entered = self._entered, None
        if entered is not None:
            _capability.leave(entered)

    async def __aenter__(self) -> str:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make a function work for the tenant whenever it is called.

        Raises:
            TenantRefused: This is a class, whose methods would run without the tenant.
        """
        if isinstance(function, type):
            raise TenantRefused(f"with_tenant on class {function.__name__}: decorate its methods, one by one")
        for asks, wrap in _WRAPPERS:
            if asks(function):
                return cast(Callable[P, R], functools.wraps(function)(wrap(self._tenant_id, function)))

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with with_tenant(self._tenant_id):
                return function(*args, **kwargs)

        return call


def current_tenant() -> str | None:
    """Return the id of the tenant whose work this is, or None."""
    capability = _capability.current()
    return None if capability is None else capability.tenant_id


def carry_tenant(function: Callable[P, R]) -> Callable[P, R]:
    """Bind the tenant in force to a function, for a thread that has none of its own.

    The function has the tenant for as long as the block it was carried from is open; called later, it raises.

    Raises:
        TenantRequired: No tenant is set here, or, when called, the block has ended.
    """
    carried = _capability.required()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        adopted = _capability.adopt(carried)
        try:
            return function(*args, **kwargs)
        finally:
            _capability.leave(adopted)

    return call


@overload
def set_tenant_for_query(
    connection: psycopg.Connection[Any] | SqlConnection, *, keys: ContextKeys | None = None
) -> None: ...
@overload
def set_tenant_for_query(
    connection: psycopg.AsyncConnection[Any] | SqlAsyncConnection, *, keys: ContextKeys | None = None
) -> Awaitable[None]: ...
def set_tenant_for_query(connection: Any, *, keys: ContextKeys | None = None) -> Awaitable[None] | None:
    """Make a connection's queries see the rows of the tenant in force, and no others; await it on an async one.

    It holds for the current transaction and, through the cursors the connection makes from now on, for each later
    one, always for the tenant that is in force then. Outside `with_tenant` such a connection refuses to work.

    Args:
        connection: A psycopg `Connection` or `AsyncConnection`, or a SQLAlchemy one over psycopg, with a login that is
            a member of `flowstone_pool`, or the tenant's own.
        keys: What contexts are signed with; the file that `FLOWSTONE_CONTEXT_KEY_FILE` names when left out.

    Raises:
        TenantRequired: No tenant is set.
        TenantRefused: The connection is in autocommit, works for another tenant in this transaction, holds a cursor
            open, or the database does not accept the context.
        UnsafeLogin: The login is not bound by row level security.
    """
    from flowstone.db import tenant_session  # keeps drivers out of processes that need the context alone

    return tenant_session.bind(connection, keys)


def _wrap_coroutine(tenant_id: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with with_tenant(tenant_id):
            return await function(*args, **kwargs)

    return call


def _wrap_generator(tenant_id: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        resume, argument = generator.send, None
        try:
            while True:
                with with_tenant(tenant_id):
                    try:
                        value = resume(argument)
                    except StopIteration as stop:
                        return stop.value
                try:
                    resume, argument = generator.send, (yield value)
                except Exception as error:
                    resume, argument = generator.throw, error
        finally:
            with with_tenant(tenant_id):
                generator.close()

    return call


def _wrap_async_generator(tenant_id: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator = function(*args, **kwargs)
        resume, argument = generator.asend, None
        try:
            while True:
                with with_tenant(tenant_id):
                    try:
                        value = await resume(argument)
                    except StopAsyncIteration:
                        return
                try:
                    resume, argument = generator.asend, (yield value)
                except Exception as error:
                    resume, argument = generator.athrow, error
        finally:
            with with_tenant(tenant_id):
                await generator.aclose()

    return call


_WRAPPERS: tuple[tuple[Callable[[Any], bool], Callable[[str, Callable[..., Any]], Callable[..., Any]]], ...] = (
    (inspect.isasyncgenfunction, _wrap_async_generator),
    (inspect.isgeneratorfunction, _wrap_generator),
    (inspect.iscoroutinefunction, _wrap_coroutine),
)
