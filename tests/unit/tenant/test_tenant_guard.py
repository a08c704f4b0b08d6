"""Guards: tiers, installed guards, and that whatever goes wrong is a refusal."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from itertools import product
from typing import Any

import pytest

from flowstone.errors import TenantRefused
from flowstone.guard import GROUP, TIERS, Asset, Guard, GuardContext, Guards, Tenant, TierGuard


class Half:
    """No guard: it lacks can_materialize."""

    def can_access(self, asset: Any, context: Any) -> bool:
        return True


class Raises(Half):
    def can_materialize(self, asset: Any, context: Any) -> bool:
        raise LookupError("who?")


class Truthy(Half):
    def can_materialize(self, asset: Any, context: Any) -> Any:
        return "yes"


class AllowsAcme(Half):
    def can_materialize(self, asset: Any, context: Any) -> bool:
        return bool(context.tenant.id == "acme")


def context(tier: str = "basic", tenant: str = "acme") -> GuardContext:
    """Return the context of a tenant."""
    return GuardContext(Tenant(tenant, tier))


@pytest.mark.parametrize(("tier", "required"), list(product(TIERS, TIERS)))
def test_a_tier_includes_those_below_it(tier: str, required: str) -> None:
    """basic < standard < premium < enterprise, for seeing and for computing."""
    allowed = ["basic", "standard", "premium", "enterprise"].index(tier) >= TIERS.index(required)
    guard = TierGuard()
    assert guard.can_access(Asset("a", required), context(tier)) is allowed
    assert guard.can_materialize(Asset("a", required), context(tier)) is allowed


def test_an_asset_without_a_tier_is_for_everybody() -> None:
    """Without requiredTier even work without a tenant may go on; with one it may not."""
    assert TierGuard().can_materialize(Asset("a"), GuardContext())
    assert not TierGuard().can_materialize(Asset("a", "basic"), GuardContext())


def test_a_word_that_is_no_tier_is_refused() -> None:
    """A tier that does not exist refuses, instead of counting as the lowest."""
    guards = Guards((("tier", TierGuard()),))
    assert "ValueError" in str(guards.refusal("access", Asset("a", "gold"), context("enterprise")))
    assert "ValueError" in str(guards.refusal("access", Asset("a", "basic"), context("gold")))


def test_the_tier_guard_is_installed() -> None:
    """The package registers TierGuard itself, and it is a Guard."""
    assert isinstance(TierGuard(), Guard)
    installed = dict(Guards.installed().guards)
    assert isinstance(installed["tier"], TierGuard)


def test_all_guards_must_agree_and_the_one_that_does_not_is_named() -> None:
    """The refusal names the guard, not the tenant; require raises it."""
    found = [
        EntryPoint("tier", "flowstone.guard:TierGuard", GROUP),
        EntryPoint("acme-only", f"{__name__}:AllowsAcme", GROUP),
    ]
    guards = Guards.installed(found)
    asset = Asset("a", "standard")
    assert guards.refusal("materialize", asset, context("premium")) is None
    guards.require("materialize", asset, context("premium"))
    assert guards.refusal("materialize", asset, context("premium", "other")) == "guard 'acme-only' refused"
    with pytest.raises(TenantRefused, match="tier") as caught:
        guards.require("materialize", asset, context("basic"))
    assert "refused" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (f"{__name__}:Raises", "LookupError"),
        (f"{__name__}:Truthy", "refused"),
        (f"{__name__}:Half", "lacks can_access or can_materialize"),
        (f"{__name__}:Missing", "has no attribute 'Missing'"),
        ("no.such.module:Guard", "no.such.module:Guard: not loaded: ModuleNotFoundError: No module named 'no'"),
    ],
)
def test_a_guard_that_does_not_work_refuses(value: str, words: str) -> None:
    """Not loadable, incomplete, raising, or answering something else: each is a no, for that action."""
    guards = Guards.installed([EntryPoint("x", value, GROUP)])
    assert words in str(guards.refusal("materialize", Asset("a"), context()))
