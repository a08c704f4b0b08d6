"""Why a Backfill does not move, and what to do: conditions and open Jobs in words. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from flowstone.cli.exits import condition
from flowstone.cli.view import heading, trouble_words
from flowstone.cli.wanted import Ahead
from flowstone.executor.blockage import blockage
from flowstone.executor.pods import run_state
from flowstone.executor.port import Ended, Running

Json = Mapping[str, Any]

REMEDIES = {
    "InvalidSpec": "edit the Asset if it is named, and this goes on; otherwise create a corrected Backfill",
    "AssetNotFound": "create the Asset in the same namespace; the Backfill is taken up then",
    "ImagePull": "correct the image in the Asset's template; Jobs that never started are made anew",
    "QuotaExceeded": "raise the namespace's quota, or lower maxParallel",
    "PodSecurity": "correct the securityContext in the Asset's template",
    "ServiceAccount": "create the service account, and allow it in the chart's value serviceAccounts",
    "Volume": "look at the volume or claim that the message names",
    "Config": "create the ConfigMap or Secret that the template names, or set runAsUser for an image that runs as root",
    "CreateFailed": "the message is the API server's or the node's own; correct the Asset's template",
    "Unschedulable": "no node has room: wait, add nodes, or lower the template's requests",
    "Waiting": "no node has room: wait, add nodes, or lower the template's requests",
    "NoProgress": "tried again ever later, up to ten minutes: look at node size and priorities, or at the network to"
    " Postgres, as the message has it; an edit of the Asset's template is tried at once",
    "NameConflict": "delete or rename the Job that has this name",
    "RBAC": "give the operator the right back: reinstall the chart's roles",
    "LedgerUnreachable": "see whether Postgres answers; open Jobs go on meanwhile",
    "SchemaNotCompatible": "let the newer version's `flowstone migrate` finish",
    "Refused": "the message is the API server's own; see the operator's log for the request",
    "TenantNotFound": "create the Tenant; the Backfill is taken up then",
    "TenantNotReady": "look at the Tenant's conditions; work goes on once its login is there",
    "TenantRefused": "the Tenant does not allow this namespace or asset: change its namespaces or tier, or the Asset",
    "DatabaseUnavailable": "bring that Tenant's database back; finished partitions are recorded there and copied then",
    "OutcomesHeld": "nothing: it is tried again after seconds",
    "Cancelling": "wait: each pod has its terminationGracePeriodSeconds to end",
    "WaitsForBackfill": "wait for the Backfill that is named, or cancel that one",
    "SuspendedBySpec": "`flowstone backfill resume NAME`, or unset spec.suspend",
    "FailureBudgetPassed": "mend the cause, then `flowstone backfill resume NAME`, or raise spec.failureBudget",
    "PartlyFailed": "mend the cause, then `flowstone backfill retry NAME`; a new Backfill also runs the rest",
    "Failed": "mend the cause, then `flowstone backfill retry NAME`; a new Backfill also runs the rest",
}
"""What people can do, by the reason of a condition; docs/operations.md says the same at length.

`NAME` stands for the Backfill's name and namespace.
"""

WAITING = "they wait for their back-off, for another Backfill over the same partitions, or for the operator's limit"
"""Why partitions wait though nothing stands in the way."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing, and what to do about it ("" = nothing)."""

    words: str
    remedy: str = ""


def findings(
    resource: Json,
    jobs: Sequence[Json],
    pods: Sequence[Json],
    events: Sequence[Json],
    now: datetime,
    first: Sequence[Ahead] = (),
) -> list[Finding]:
    """What holds a Backfill up, the most important first.

    Args:
        jobs: Its Jobs.
        pods: Their pods.
        events: The namespace's core Events.
        first: Other Backfills that have partitions of it first.
    """
    trouble, stuck = _trouble(resource), _stuck(jobs, pods, events, now)
    found = [*_unseen(resource), *_stops(resource, trouble, stuck), *_errors(resource, trouble)]
    found += _jobs(jobs, pods, now)
    found += _rest(resource, trouble, first)
    return [_addressed(one, resource) for one in found] or [Finding("nothing holds it up")]


def _addressed(finding: Finding, resource: Json) -> Finding:
    """The finding with commands that can be copied."""
    meta = resource["metadata"]
    return Finding(finding.words, finding.remedy.replace("NAME", f"{meta['name']} -n {meta['namespace']}"))


def _unseen(resource: Json) -> list[Finding]:
    if (resource.get("status") or {}).get("conditions"):
        return []
    return [Finding("the operator has not seen it yet", "see whether the operator runs and watches this namespace")]


def _trouble(resource: Json) -> tuple[str, str] | None:
    """Reason and message of what stands in the way; people's own `cancel` counts too."""
    cancelling = next((one for one in _conditions(resource) if one.get("reason") == "Cancelling"), None)
    return ("Cancelling", str(cancelling.get("message", ""))) if cancelling else trouble_words(resource)


def _conditions(resource: Json) -> Sequence[Json]:
    return (resource.get("status") or {}).get("conditions") or []


def _stuck(
    jobs: Sequence[Json], pods: Sequence[Json], events: Sequence[Json], now: datetime
) -> dict[str, tuple[str, str]]:
    """Why Jobs do not start: by reason how many, and the words about one of them."""
    found: dict[str, list[str]] = {}
    messages: dict[str, str] = {}
    for job in jobs:
        one = blockage(job, _of(job, pods), events, now)
        if one is not None:
            found.setdefault(one.reason, []).append(job["metadata"]["name"])
            messages[one.reason] = one.message
    return {
        reason: (f"{len(names)} Jobs do not start, such as {names[0]}", messages[reason])
        for reason, names in found.items()
    }


def _stops(resource: Json, trouble: tuple[str, str] | None, stuck: Mapping[str, tuple[str, str]]) -> Iterator[Finding]:
    """The condition, with the Jobs that it is about, and then Jobs that do not start for other reasons."""
    # Lack of room is `Waiting` in a condition: it is everyday life until it has lasted.
    told = {"Waiting": "Unschedulable"}.get(trouble[0], trouble[0]) if trouble else ""
    if trouble:
        such = f" ({stuck[told][0]})" if told in stuck else ""
        yield Finding(": ".join(trouble) + such, _remedy(trouble[0], resource))
    if trouble and trouble[0] == "FailureBudgetPassed" and (resource.get("spec") or {}).get("suspend"):
        yield Finding("spec.suspend is set too: a raised budget alone does not go on", REMEDIES["SuspendedBySpec"])
    for reason, (such, message) in stuck.items():
        if reason != told:
            yield Finding(f"{reason}: {such}: {message}", REMEDIES.get(reason, ""))


def _remedy(reason: str, resource: Json) -> str:
    if reason in ("PartlyFailed", "Failed") and (resource.get("spec") or {}).get("cancel"):
        return "mend the cause, then create another Backfill, with select: Failed: what is cancelled is not retried"
    return REMEDIES.get(reason, "")


def _errors(resource: Json, trouble: tuple[str, str] | None) -> list[Finding]:
    """The most frequent error of those in the status, unless the condition has it, and where to read more."""
    failures = (resource.get("status") or {}).get("failures") or []
    if not failures or trouble is None or trouble[0] not in ("PartlyFailed", "Failed", "FailureBudgetPassed"):
        return []
    [(error, number)] = Counter(_last_line(one) for one in failures).most_common(1)
    partition = next(one["partition"] for one in failures if _last_line(one) == error)
    words = f"partition {partition} is one of those that failed"
    if "most frequent error" not in trouble[1]:
        words += f"; most frequent error ({number} of the {len(failures)} in the status): {error}"
    meta = resource["metadata"]
    command = f"flowstone backfill logs {meta['name']} {shlex.quote(partition)} -n {meta['namespace']}"
    return [Finding(words, f"`{command}` prints its log")]


def _last_line(failure: Json) -> str:
    return (str(failure.get("error", "")).strip().splitlines() or [""])[-1]


def _jobs(jobs: Sequence[Json], pods: Sequence[Json], now: datetime) -> list[Finding]:
    states = Counter(_word(run_state(job, _of(job, pods), now)) for job in jobs)
    if not states:
        return []
    words = ", ".join(f"{number} {word}" for word, number in states.most_common())
    return [Finding(f"{len(jobs)} Jobs: {words}")]


def _word(state: object) -> str:
    if isinstance(state, Running):
        return "running" if state.ready else "ending" if state.stopping else "starting"
    return "ended" if isinstance(state, Ended) else "gone"


def _rest(resource: Json, trouble: tuple[str, str] | None, first: Sequence[Ahead]) -> list[Finding]:
    counts = (resource.get("status") or {}).get("counts") or {}
    if condition(resource, "Finished") == "True":
        return [Finding("it is finished: an unchanged spec does nothing more")]
    # Whatever else stands in the way, partitions wait for that, not for each other.
    if trouble or not counts.get("queued") or (resource.get("status") or {}).get("activeBatches"):
        return []
    told = next((str(one.get("message", "")) for one in _conditions(resource) if one.get("type") == "Ready"), "")
    words = f"{counts['queued']} partitions wait and no batch is open" + (f": {told}" if told else "")
    return [Finding(words, _why_they_wait(told, first)), *(_behind(one, resource) for one in first)]


def _why_they_wait(told: str, first: Sequence[Ahead]) -> str:
    if "the next retry is at" in told:
        return "they wait for their back-off; a shorter spec.retry.backoffSeconds counts at once"
    return "" if first else WAITING


def _behind(other: Ahead, resource: Json) -> Finding:
    words = f"Backfill {other.name} ({other.phase}) is older and asks for {other.shared} of the same partitions"
    command = f"flowstone backfill explain {other.name} -n {resource['metadata']['namespace']}"
    return Finding(words, f"it works on those first; if it stands still, `{command}` says why, or cancel it")


def _of(job: Json, pods: Sequence[Json]) -> list[Json]:
    uid = job["metadata"]["uid"]
    return [pod for pod in pods if any(one.get("uid") == uid for one in pod["metadata"].get("ownerReferences") or [])]


def picture(resource: Json, found: Sequence[Finding], now: datetime) -> RenderableType:
    """The findings for people."""
    lines: list[RenderableType] = [heading(resource, now)]
    for one in found:
        lines.append(Text.assemble("• ", one.words))
        if one.remedy:
            lines.append(Text.assemble("  → ", one.remedy, style="green"))
    return Group(*lines)
