"""What a Tenant says about itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
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
class Findings:
    """What was found about the server as a whole.

    Attributes:
        hardened: What bootstrap should have done, read back; None when it was not looked at.
        isolated: How the last proof went; None before the first.
        at: When it was looked at; None before the first time.
    """

    hardened: Verdict | None
    isolated: Verdict | None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a reconcile.

    Attributes:
        decision: The last one; its changes are what was still to be done.
        drift: What had been changed by hand and was put right.
        failed: Why a step could not be done; empty when all could.
        stuck: What is still to be done was tried, and the server did not let the operator do it.
        hardened: See `Findings`.
        isolated: See `Findings`.
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


def agreed(findings: Findings, own: OwnDatabase | None, resource: Json) -> Findings:
    """Return the findings to tell: those in the status, if another replica wrote it after this one had looked.

    Two replicas that found different things would otherwise write every Tenant's status against each other, each
    write waking the other, until both have looked again. What it saw of an own database is newer.
    """
    written = _written_at(resource)
    before = _before(resource.get("status") or {})
    if findings.at is None or written is None or written <= findings.at:
        return replace(findings, hardened=with_database(findings.hardened, own))
    return replace(
        findings,
        hardened=_told(before.get("Hardened") if own is None else None) or with_database(findings.hardened, own),
        isolated=_told(before.get("IsolationVerified")) or findings.isolated,
    )


def _written_at(resource: Json) -> datetime | None:
    """When the status last became another one, by the API server's clock; it keeps whole seconds."""
    fields = resource["metadata"].get("managedFields") or []
    times = [one["time"] for one in fields if one.get("subresource") == "status" and one.get("time")]
    return max(map(datetime.fromisoformat, times), default=None)


def _told(condition: Json | None) -> Verdict | None:
    return Verdict(condition["status"], condition["reason"], condition["message"]) if condition else None


def _before(previous: Json) -> dict[str, Json]:
    return {one["type"]: one for one in previous.get("conditions") or []}


def compose(
    outcome: Outcome, generation: int, previous: Json, now: datetime, *, shown: timedelta = timedelta(0)
) -> dict[str, Any]:
    """Return the whole status.

    Args:
        outcome: What came out of the reconcile.
        generation: Of the resource.
        previous: The status there now, whose transition times live on.
        now: With a zone.
        shown: How long people are told of drift that was put right.
    """
    before = _before(previous)
    conditions = dict(_conditions(outcome))
    if conditions["CredentialDrift"].truth == "False" and _fresh(before.get("CredentialDrift"), now - shown):
        conditions["CredentialDrift"] = _told(before["CredentialDrift"]) or conditions["CredentialDrift"]
    found = sorted(conditions.items())
    return {
        "observedGeneration": generation,
        "conditions": [_condition(kind, verdict, generation, before.get(kind) or {}, now) for kind, verdict in found],
        **_export(outcome.decision.ending),
    }


def news(old: Json, new: Json) -> str:
    """Return what a status tells of drift that the one before it did not; "" when nothing."""
    before, after = _before(old).get("CredentialDrift") or {}, _before(new)["CredentialDrift"]
    return str(after["message"]) if after["status"] == "True" and after["message"] != before.get("message") else ""


def _fresh(condition: Json | None, since: datetime) -> bool:
    """Whether drift was put right after some time."""
    if condition is None or (condition["status"], condition["reason"]) != ("True", "Repaired"):
        return False
    return datetime.fromisoformat(condition["lastTransitionTime"]) > since


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
