"""What a connection must do before its next statement: the pure decision."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowstone.db.tenant_binding import Binding, Situation
from flowstone.db.tenant_login import LoginKind, judge_login
from flowstone.errors import TenantRefused, TenantRequired, UnsafeLogin
from flowstone.tenant.signing import LIFETIME_SECONDS, RENEW_SECONDS, ContextKeys
from flowstone.tenant_context import with_tenant

IDLE = Situation(idle=True, failed=False, autocommit=False)
OPEN = Situation(idle=False, failed=False, autocommit=False)
KEYS = ContextKeys((bytes(32),))


class Clock:
    """Seconds that go on when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def bound(clock: Clock, *, watched: bool = True) -> Binding:
    """Return a binding that was entered for tenant_a in an open transaction."""
    binding = Binding(None, read=lambda: KEYS, clock=clock, watched=watched)
    binding.recognise(LoginKind("pool"), None)
    with with_tenant("tenant_a"):
        entry = binding.needed(IDLE)
        assert entry is not None
        assert entry.context == KEYS.sign("tenant_a", 1_800_000_000 + LIFETIME_SECONDS)
        binding.accept(entry, "entered")
    return binding


def test_a_context_is_given_once_per_transaction_and_renewed_in_time() -> None:
    """In the same transaction nothing is sent until little of the lifetime is left; a new transaction begins anew."""
    clock = Clock()
    binding = bound(clock)
    with with_tenant("tenant_a"):
        assert binding.needed(OPEN) is None
        clock.now += LIFETIME_SECONDS - RENEW_SECONDS - 1
        assert binding.needed(OPEN) is None
        clock.now += 1
        renewed = binding.needed(OPEN)
        assert renewed is not None
        assert renewed.expiry == int(clock.now) + LIFETIME_SECONDS
        assert bound(Clock()).needed(IDLE) is not None


def test_an_unwatched_connection_asks_each_time() -> None:
    """Where the beginning of transactions is not seen, the server is asked before every statement."""
    binding = bound(Clock(), watched=False)
    with with_tenant("tenant_a"):
        assert binding.needed(OPEN) is not None


def test_the_tenant_in_force_decides() -> None:
    """None in force raises; another one is refused within the transaction, for statements and for rows."""
    binding = bound(Clock())
    uses: tuple[Callable[[], object], ...] = (binding.check, lambda: binding.needed(OPEN))
    for use in uses:
        with pytest.raises(TenantRequired):
            use()
        with with_tenant("tenant_b"), pytest.raises(TenantRefused):
            use()
    with with_tenant("tenant_b"):
        entry = binding.needed(IDLE)
    assert entry is not None
    assert entry.tenant_id == "tenant_b"


def test_a_failed_transaction_is_left_to_the_server() -> None:
    """Nothing can be set in a failed transaction; the server's own error is the better one."""
    with with_tenant("tenant_a"):
        assert bound(Clock()).needed(Situation(idle=False, failed=True, autocommit=False)) is None


@pytest.mark.parametrize("verdict", ["other", "cursor", "refused", None, "anything"])
def test_a_refused_context_is_not_remembered(verdict: str | None) -> None:
    """Whatever the server answers but yes is a refusal, without tenant ids in its message."""
    binding = Binding(None, read=lambda: KEYS, clock=Clock(), watched=True)
    binding.recognise(LoginKind("pool"), None)
    with with_tenant("tenant_a"):
        entry = binding.needed(IDLE)
        assert entry is not None
        with pytest.raises(TenantRefused) as caught:
            binding.accept(entry, verdict)
        assert "tenant_a" not in str(caught.value)
        assert binding.needed(OPEN) is not None


def test_a_tenants_own_login_needs_no_context_and_serves_nobody_else() -> None:
    """Its rows are bound to the role; under another tenant it is refused."""
    binding = Binding(None, read=lambda: pytest.fail("no key is needed"), clock=Clock(), watched=True)
    binding.recognise(LoginKind("tenant"), "tenant_a")
    with with_tenant("tenant_a"):
        assert binding.needed(IDLE) is None
    with with_tenant("tenant_b"), pytest.raises(UnsafeLogin):
        binding.needed(IDLE)


def test_a_login_must_be_safe_and_of_one_group() -> None:
    """The judgement needs exactly one group and no way around row level security."""
    assert judge_login((None, True, False)) == LoginKind("pool")
    assert judge_login((None, False, True)) == LoginKind("tenant")
    for row in (("it is a superuser", True, False), (None, True, True), (None, False, False), None):
        with pytest.raises(UnsafeLogin):
            judge_login(row)
