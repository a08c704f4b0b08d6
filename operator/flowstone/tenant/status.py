"""What a Tenant says about itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from flowstone.tenant.changes import Decision
from flowstone.tenant.observed import NOT_EXPORTED, Exported, OwnDatabase

Json = Mapping[str, Any]
Truth = Literal["True", "False", "Unknown"]

_SUPERUSER = "the operator may not take this back: whoever did it, or a superuser, must"

LONGEST = 1000
"""Characters of a message."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding about the whole server that every tenant's status shows.

    Attributes:
        truth: Whether it holds.
        reason: One word for programs.
        message: A sentence for people; it names what is missing.
    """

    truth: Truth
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a reconcile.

    Attributes:
        decision: The last one; its changes are what was still to be done.
        drift: What had been changed by hand and was put right.
        failed: Why a step could not be done; empty when all could.
        stuck: What is still to be done was tried, and the server did not let the operator do it.
        hardened: What bootstrap should have done, read back; None when it was not looked at.
        isolated: How the last proof went; None before the first.
    """

    decision: Decision
    drift: Sequence[str] = ()
    failed: str = ""
    stuck: bool = False
    hardened: Verdict | None = None
    isolated: Verdict | None = None


def with_database(hardened: Verdict | None, own: OwnDatabase | None) -> Verdict | None:
    """Return condition `Hardened` of a tenant with a database of its own: what is open about that comes first."""
    if hardened is None or own is None or not own.exists:
        return hardened
    if own.open:
        return Verdict("False", "DatabaseOpen", f"its database: {'; '.join(own.open)}. {hardened.message}")
    return replace(hardened, message=f"{hardened.message}; so was its database")


def compose(outcome: Outcome, generation: int, previous: Json, now: datetime) -> dict[str, Any]:
    """Return the whole status; `previous` is the one there now, whose transition times live on."""
    before = {one.get("type"): one for one in previous.get("conditions") or []}
    found = sorted(_conditions(outcome), key=lambda one: one[0])
    return {
        "observedGeneration": generation,
        "conditions": [_condition(kind, verdict, generation, before.get(kind) or {}, now) for kind, verdict in found],
        **_export(outcome.decision.ending),
    }


def _export(ending: Exported | None) -> dict[str, Any]:
    """Return what became of the rows of a tenant that is to end."""
    if ending is None:
        return {}
    until = ending.retain_until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    where = {"file": ending.file} if ending.file else {"notExported": NOT_EXPORTED}
    return {"export": {**where, "digest": f"sha256:{ending.digest}", "retainUntil": until}}


def _conditions(outcome: Outcome) -> Iterator[tuple[str, Verdict]]:
    yield "Ready", _ready(outcome)
    decision = outcome.decision
    if decision.problem is not None:
        yield "Stalled", Verdict("True", decision.problem.reason, decision.problem.message)
    elif (decision.changes and not outcome.stuck) or outcome.failed:
        yield "Reconciling", Verdict("True", "InProgress", outcome.failed or "the tenant is being brought up to date")
    if outcome.drift:
        reason = "NotRepaired" if outcome.stuck else "Repaired"
        yield "CredentialDrift", Verdict("True", reason, "; ".join(sorted(set(outcome.drift))))
    elif decision.problem is not None or outcome.failed:
        yield "CredentialDrift", Verdict("Unknown", "NotLooked", "see Ready for what has to be put right first")
    else:
        yield "CredentialDrift", Verdict("False", "AsWanted", "logins, memberships and Secrets are as they were made")
    if outcome.hardened is not None:
        yield "Hardened", outcome.hardened
    if outcome.isolated is not None:
        yield "IsolationVerified", outcome.isolated


def _ready(outcome: Outcome) -> Verdict:
    decision = outcome.decision
    if decision.problem is not None:
        return Verdict("False", decision.problem.reason, decision.problem.message)
    if outcome.failed:
        return Verdict("False", "StepFailed", outcome.failed)
    if outcome.stuck:
        what = "; ".join(sorted(set(outcome.drift)))
        return Verdict("False", "DriftNotRepaired", f"{what}: {_SUPERUSER}")
    if outcome.isolated is not None and outcome.isolated.truth == "False":
        return Verdict("False", outcome.isolated.reason, outcome.isolated.message)
    if decision.changes:
        return Verdict("False", "InProgress", "the tenant is being brought up to date")
    if decision.missing:
        names = ", ".join(decision.missing)
        return Verdict("False", "NamespaceNotFound", f"spec.namespaces: not there: {names}: create them")
    return Verdict("True", "Provisioned", decision.waits or "its logins and Secrets are in place")


def _condition(kind: str, verdict: Verdict, generation: int, before: Json, now: datetime) -> dict[str, Any]:
    kept = before.get("lastTransitionTime") if before.get("status") == verdict.truth else None
    return {
        "type": kind,
        "status": verdict.truth,
        "observedGeneration": generation,
        "lastTransitionTime": str(kept or now.strftime("%Y-%m-%dT%H:%M:%SZ")),
        "reason": verdict.reason,
        "message": verdict.message[:LONGEST],
    }
