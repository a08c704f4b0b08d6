"""What a Tenant says about itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.backfill.edges.tenants import claim, unready
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


def test_of_two_tenants_of_one_id_the_one_that_has_it_counts() -> None:
    """Whoever was refused the id does not speak for it, nor does a newer one that was not looked at yet."""

    def tenant(name: str, created: str, *reasons: str) -> dict[str, Any]:
        conditions = [{"type": "Ready", "status": "False", "reason": reason} for reason in reasons]
        return {"metadata": {"name": name, "creationTimestamp": created}, "status": {"conditions": conditions}}

    holder = tenant("m", "2026-11-02T00:00:00Z", "StepFailed")
    refused = tenant("a", "2026-11-01T00:00:00Z", "IdTaken")
    newer = tenant("z", "2026-11-03T00:00:00Z")
    assert min([refused, newer, holder], key=claim) is holder
    assert min([refused, newer], key=claim) is newer
