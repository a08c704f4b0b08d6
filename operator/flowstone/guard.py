"""Guards: who may see and who may compute an asset, decided anew at planning, at each hand-out, and at each report and
listing of a Python program.

A guard is any object with the two methods of `Guard`. Installed ones are found through the entry point group
`flowstone.guards`; all of them must agree. A guard that cannot be loaded, raises, or answers anything but True or False
has refused: guards fail closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol, runtime_checkable

from flowstone.errors import FlowStoneError, TenantRefused

TIERS = ("basic", "standard", "premium", "enterprise")
"""Tiers, each including what the ones before it may do."""

GROUP = "flowstone.guards"
"""Entry point group in which packages register guards; an entry is called without arguments and returns a guard."""

Action = Literal["access", "materialize"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, as guards see it."""

    id: str
    tier: str = "basic"


@dataclass(frozen=True, slots=True)
class RegisteredTenant:
    """A tenant whose tier is read from the registry when a guard asks for it: a pooled login may not read there."""

    id: str
    read_tier: Callable[[], str] = field(repr=False)

    @property
    def tier(self) -> str:
        """The tenant's tier."""
        return self.read_tier()


@dataclass(frozen=True, slots=True)
class Asset:
    """An asset, as guards see it.

    Attributes:
        id: The asset's id.
        required_tier: The lowest tier that may have it; None means any tenant, and no tenant at all. Reports and
            listings of a Python program have None, since the ledger does not know it.
        namespace: Where its resource is.
    """

    id: str
    required_tier: str | None = None
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class GuardContext:
    """Under which circumstances the question is asked; `tenant` is None for work without a tenant."""

    tenant: Tenant | RegisteredTenant | None = None


@runtime_checkable
class Guard(Protocol):
    """Decides whether a tenant may see or compute an asset.

    Both methods get the asset (`id`, `required_tier`, `namespace`) and a context whose `tenant` has `id` and `tier`.
    """

    def can_access(self, asset: Any, context: Any) -> bool:
        """Whether the tenant may see the asset's materializations."""
        ...

    def can_materialize(self, asset: Any, context: Any) -> bool:
        """Whether the tenant may have the asset computed."""
        ...


class TierGuard:
    """Lets a tenant have the assets of its own tier and of those below: basic < standard < premium < enterprise."""

    def can_access(self, asset: Any, context: Any) -> bool:
        """Whether the tenant's tier is at least the asset's `required_tier`."""
        required = getattr(asset, "required_tier", None)
        if required is None:
            return True
        tenant = getattr(context, "tenant", None)
        return tenant is not None and _rank(tenant.tier) >= _rank(required)

    def can_materialize(self, asset: Any, context: Any) -> bool:
        """Whether the tenant's tier is at least the asset's `required_tier`."""
        return self.can_access(asset, context)


def _rank(tier: str) -> int:
    """Return a tier's place in the order; ValueError for a word that is none."""
    return TIERS.index(tier)


@dataclass(frozen=True, slots=True)
class Guards:
    """All guards that are in force, by name; every one of them must agree."""

    guards: tuple[tuple[str, Guard], ...]

    @classmethod
    def installed(cls, found: Iterable[EntryPoint] | None = None) -> Guards:
        """Load the guards of this installation.

        Args:
            found: Entry points to load; those of group `flowstone.guards` when left out.
        """
        points = entry_points(group=GROUP) if found is None else found
        return cls(tuple((point.name, _loaded(point)) for point in sorted(points, key=lambda point: point.name)))

    def refusal(self, action: Action, asset: Any, context: Any) -> str | None:
        """Return why the action is refused, naming the guard, or None when every guard agrees."""
        for name, guard in self.guards:
            ask = guard.can_access if action == "access" else guard.can_materialize
            try:
                answer = ask(asset, context)
            except FlowStoneError as error:  # our own words name no tenant, and say what to do
                return f"guard {name!r} failed, which counts as no: {type(error).__name__}: {error}"
            except Exception as error:
                return f"guard {name!r} failed with {type(error).__name__}, which counts as no"
            if answer is not True:
                return f"guard {name!r} refused"
        return None

    def require(self, action: Action, asset: Any, context: Any) -> None:
        """Return when every guard agrees.

        Raises:
            TenantRefused: One did not.
        """
        if refusal := self.refusal(action, asset, context):
            raise TenantRefused(f"{action}: {refusal}: ask whoever runs this FlowStone for the tier or the right")


@dataclass(frozen=True, slots=True)
class _BrokenGuard:
    """Stands for a guard that could not be loaded: it says no, with the reason."""

    reason: str

    def can_access(self, asset: Any, context: Any) -> bool:
        """Refuse."""
        raise TenantRefused(self.reason)

    def can_materialize(self, asset: Any, context: Any) -> bool:
        """Refuse."""
        raise TenantRefused(self.reason)


def _loaded(point: EntryPoint) -> Guard:
    try:
        guard = point.load()()
    except Exception as error:
        return _BrokenGuard(f"{point.value}: not loaded: {type(error).__name__}: {error}")
    return (
        guard
        if isinstance(guard, Guard)
        else _BrokenGuard(f"{point.value}: no guard: it lacks can_access or can_materialize")
    )
