"""What a Tenant says about itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flowstone.backfill.edges.tenants import unready
from flowstone.tenant.changes import Decision
from flowstone.tenant.status import Outcome, Verdict, compose

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("isolated", "ready", "reason"),
    [
        (None, "True", ""),
        (Verdict("True", "Proven", "300 checks"), "True", ""),
        (Verdict("Unknown", "NotKnown", "Postgres refused"), "True", ""),
        (Verdict("False", "IsolationBroken", "lint rls-off: t"), "False", "not ready: lint rls-off: t"),
    ],
    ids=["not looked at", "proven", "not known", "broken"],
)
def test_a_tenant_whose_isolation_is_broken_is_not_ready(isolated: Verdict | None, ready: str, reason: str) -> None:
    """Ready follows the proof, and so does whether a Backfill may work for the tenant."""
    status = compose(Outcome(Decision(), isolated=isolated), 1, {}, NOW)
    found = {one["type"]: one["status"] for one in status["conditions"]}
    assert found["Ready"] == ready
    assert unready({"status": status}) == reason
