"""Who the running code works for: a capability that can be closed, carried by a context variable.

A context variable alone is not enough. A task created inside a `with` block keeps its copy after the block has
ended, and a suspended generator leaves its tenant behind in its consumer. So the variable holds a *capability* with
a closed flag, and each use resolves it anew:

* closed, entered by a plain frame: nobody. A task that outlives its block must not fall back to an outer tenant.
* entered by a generator that is suspended now, asked in the flow that entered it: the next outer capability, because
  the generator's block is not being executed. A generator that contextlib drives *is* a block, and counts as one.
* entered before such a generator was resumed: the generator's, whose block is the inner one while it runs.
* otherwise: its tenant.

Leaving compares and restores: it takes its own capability off the variable and nothing else, so that blocks left
out of order, or in another context, cannot put a foreign tenant back.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from flowstone.errors import TenantRefused, TenantRequired

TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""A tenant's id: narrow on purpose. Postgres cuts names at 63 bytes, and psycopg's quoting stops at NUL."""

CANARY_PREFIX = "flowstone-canary-"
"""Beginning of the ids of tenants that only the proof of isolation uses; no other tenant can have one."""

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_OWN_MODULES = frozenset({__name__, "flowstone.tenant_context", contextlib.__name__})


def checked_tenant_id(tenant_id: object) -> str:
    """Return the id if it is one that a tenant can have.

    Raises:
        TenantRefused: It is not; the message does not repeat it, because messages carry no tenant's ids.
    """
    if not isinstance(tenant_id, str) or not TENANT_ID.fullmatch(tenant_id):
        raise TenantRefused(
            "this is no tenant id: write 1 to 63 ASCII letters, digits, '_', '.' or '-', "
            "beginning with a letter or digit"
        )
    if tenant_id.startswith(CANARY_PREFIX):
        raise TenantRefused(
            f"tenant ids that begin with {CANARY_PREFIX} are reserved for the proof of isolation: choose another"
        )
    return str(tenant_id)


class Holder(Protocol):
    """What has the tenant's context for as long as its block is the one being executed: a connection."""

    def leave(self) -> None:
        """The block has ended."""

    def pause(self) -> None:
        """Another tenant's block begins inside."""

    def resume(self) -> None:
        """That block has ended."""


class Capability:
    """The right to work for one tenant, until it is closed, or the one it was carried from is."""

    __slots__ = (
        "_closed",
        "_frame",
        "_generator",
        "_held",
        "_source",
        "_task",
        "_thread",
        "outer",
        "standing",
        "tenant_id",
    )

    def __init__(
        self,
        tenant_id: str,
        outer: Capability | None,
        frame: FrameType | None = None,
        source: Capability | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.outer = outer
        # Generators that stand still now, and may be resumed from inside this block: then theirs is the inner one.
        self.standing = tuple(below for below in _chain(outer) if below.abandoned and not below.closed)
        self._closed = False
        self._held: WeakKeyDictionary[object, Holder] = WeakKeyDictionary()
        self._source = source
        self._generator = frame is not None and _suspends(frame)
        # A frame keeps its locals alive, so only a generator's is kept, and only until the block ends.
        self._frame = frame if self._generator else None
        self._thread = threading.get_ident()
        self._task = _task() if self._generator else None

    @property
    def closed(self) -> bool:
        """Whether it has ended, for everybody who still holds it."""
        return self._closed or (self._source is not None and self._source.closed)

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._frame = None

    def hold(self, key: object, holder: Holder) -> None:
        """Tell the holder when the block ends; a carried capability's is the block that it was carried from."""
        if self._source is not None:
            self._source.hold(key, holder)
        else:
            self._held[key] = holder

    @property
    def holders(self) -> list[Holder]:
        """Who is to be told."""
        return list(self._held.values())

    @property
    def abandoned(self) -> bool:
        """Whether this flow must look past it, because its generator's block is not being executed here."""
        if not self._generator or not self._entered_here():
            return False
        return self._closed or (self._frame is not None and self._frame.f_back is None)

    def runs(self, frame: FrameType) -> bool:
        """Whether this frame, which is running, is its block's."""
        return self._frame is frame

    def _entered_here(self) -> bool:
        """Whether the flow of control that asks is the one that entered: the same task, else the same thread."""
        return threading.get_ident() == self._thread and _task() == self._task


_current: ContextVar[Capability | None] = ContextVar("flowstone_tenant", default=None)


def enter(tenant_id: str) -> Capability:
    """Begin to work for a tenant; pair it with `leave`."""
    outer = current()
    capability = Capability(tenant_id, _current.get(), _entering_frame())
    _current.set(capability)
    if outer is not None and outer.tenant_id != tenant_id:
        for holder in outer.holders:
            holder.pause()
    return capability


def leave(capability: Capability) -> None:
    """Close the capability, and take it off the variable if it is there."""
    capability.close()
    for holder in capability.holders:
        holder.leave()
    _restore(capability)
    if inner := current():
        for holder in inner.holders:
            holder.resume()


def _restore(capability: Capability) -> None:
    """Put back the capability that was there before, if it is still open."""
    if _current.get() is not capability:
        return
    outer = capability.outer
    while outer is not None and outer.closed and outer.abandoned:
        outer = outer.outer
    _current.set(None if outer is None or outer.closed else outer)


def current() -> Capability | None:
    """Return the capability in force, or None."""
    for capability in _chain(_current.get()):
        if capability.standing and (inner := _resumed(capability.standing)):
            return inner
        if not capability.abandoned:
            return None if capability.closed else capability
    return None


def required() -> Capability:
    """Return the capability in force.

    Raises:
        TenantRequired: There is none, or its block has ended, or is in a generator that is suspended.
    """
    capability = current()
    if capability is not None:
        return capability
    innermost = _current.get()
    if innermost is not None and innermost.abandoned and not innermost.closed:
        raise TenantRequired(
            "the with_tenant block is in a generator that stands still, which does not lend its tenant to the code "
            "that consumes it: enter one here"
        )
    if innermost is not None:
        raise TenantRequired("the with_tenant block that this code was started in has ended: enter one here")
    raise TenantRequired(
        "no tenant is set: do this inside `with with_tenant(id)`; a new thread needs carry_tenant(function)"
    )


def adopt(capability: Capability) -> Capability:
    """Work under somebody else's capability in this context; returns what to give to `leave`.

    Raises:
        TenantRequired: Its block has ended meanwhile.
    """
    if capability.closed:
        raise TenantRequired("the with_tenant block that carried this function has ended: enter one here")
    adopted = Capability(capability.tenant_id, _current.get(), source=capability)
    _current.set(adopted)
    return adopted


def _chain(capability: Capability | None) -> Iterator[Capability]:
    """Yield a capability and those that it was entered on top of."""
    while capability is not None:
        yield capability
        capability = capability.outer


def _resumed(standing: tuple[Capability, ...]) -> Capability | None:
    """Return the innermost of these generators' capabilities whose generator runs again, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        for capability in standing:
            if capability.runs(frame):
                return capability
        frame = frame.f_back
    return None


def _task() -> ReferenceType[asyncio.Task[object]] | None:
    """Return the asyncio task that runs, or None outside of one."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return None
    return None if task is None else ref(task)


def _entering_frame() -> FrameType | None:
    """Return the frame whose block this is: the caller outside this package and contextlib."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _OWN_MODULES:
        frame = frame.f_back
    return frame


def _suspends(frame: FrameType) -> bool:
    """Whether the frame is a generator's that may be left standing at a `yield`."""
    if not frame.f_code.co_flags & _GENERATOR:
        return False
    driver = frame.f_back
    return driver is None or driver.f_globals.get("__name__") != contextlib.__name__
