"""The status of a Backfill, for people (`kubectl get`) and for kstatus (Argo CD, Flux, `kubectl wait`).

Conditions are a closed list and the design's table is `_TABLE` below; a type that is not in a row is absent from
the status. Whatever the size of the backfill, the status stays under 16 KiB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from flowstone.backfill.records import Counts, Failure
from flowstone.backfill.standing import Stand, Standing

Json = dict[str, Any]
Truth = Literal["True", "False", "Unknown"]

STALLED_AFTER = timedelta(minutes=5)
"""A backfill blocked for longer counts as stalled: people should look."""

WAITING_AFTER = timedelta(minutes=10)
"""Waiting for room in the cluster for longer is shown as blocked; before that it is everyday life."""

_ERROR = 500
_MESSAGE = 1000
_SUMMARY = 1000
_PARTITION = 512

_OPEN: dict[str, Truth] = {"Ready": "Unknown", "Succeeded": "Unknown", "Finished": "False"}
_UNDER_WAY: dict[str, Truth] = _OPEN | {"Ready": "True"}
_HALTED: dict[str, Truth] = _OPEN | {"Ready": "False"}

_TABLE: dict[Stand, dict[str, Truth]] = {
    Stand.PLANNING: _OPEN | {"Reconciling": "True"},
    Stand.ASSET_MISSING: _HALTED | {"Reconciling": "True"},
    Stand.INVALID: _HALTED | {"Stalled": "True"},
    Stand.RUNNING: _UNDER_WAY | {"Blocked": "False", "Suspended": "False"},
    Stand.WAITING: _UNDER_WAY | {"Blocked": "False", "Suspended": "False"},
    Stand.SUSPENDED: _UNDER_WAY | {"Suspended": "True"},
    Stand.BUDGET_PASSED: _HALTED | {"Stalled": "True", "Suspended": "True"},
    Stand.BLOCKED: _HALTED | {"Blocked": "True"},
    Stand.SUCCEEDED: {"Ready": "True", "Succeeded": "True", "Finished": "True"},
    Stand.PARTLY_FAILED: {"Ready": "False", "Succeeded": "False", "Finished": "True", "Stalled": "True"},
    Stand.FAILED: {"Ready": "False", "Succeeded": "False", "Finished": "True", "Stalled": "True"},
    Stand.CANCELLED: {"Ready": "True", "Succeeded": "False", "Finished": "True"},
}

_PHASES = {
    Stand.ASSET_MISSING: "Planning",
    Stand.INVALID: "Blocked",
    Stand.WAITING: "Running",
    Stand.BUDGET_PASSED: "Suspended",
}

_FOLLOWS_READY_WHEN = frozenset({Stand.RUNNING, Stand.WAITING, Stand.SUSPENDED})


@dataclass(frozen=True, slots=True)
class Report:
    """All that a status is made of."""

    standing: Standing
    counts: Counts
    generation: int
    ready_when: str
    delivery: str
    active_batches: int = 0
    failures: Sequence[Failure] = ()
    rate: float | None = None
    succeeded: str = ""
    failed: str = ""


def phase(standing: Standing) -> str:
    """The phase that goes with a standing."""
    return _PHASES.get(standing.stand, str(standing.stand))


def compose(report: Report, previous: Mapping[str, Any], now: datetime) -> Json:
    """The whole status; `previous` is the one there now, whose transition times live on."""
    counts = report.counts
    status: Json = {
        "observedGeneration": report.generation,
        "phase": phase(report.standing),
        "counts": asdict(counts),
        "activeBatches": report.active_batches,
        "progress": progress(counts),
        "delivery": report.delivery,
        "failures": [_failure(failure) for failure in report.failures[:10]],
        "summary": {"succeeded": cut(report.succeeded, _SUMMARY), "failed": cut(report.failed, _SUMMARY)},
        "conditions": conditions(report, previous.get("conditions") or [], now),
    }
    return status | _pace(report, now)


def progress(counts: Counts) -> int:
    """Percent of the partitions that need nothing any more, rounded down: 100 means all."""
    return 100 * counts.finished // counts.total if counts.total else 0


def _pace(report: Report, now: datetime) -> Json:
    """Throughput, and when it will be over: half to twice the remaining time that the rate promises."""
    if not report.rate or report.standing.finished:
        return {}
    minutes = report.counts.open / report.rate
    earliest, latest = (now + timedelta(minutes=minutes * factor) for factor in (0.75, 1.5))
    return {"rate": round(report.rate, 1), "eta": {"earliest": stamp(earliest), "latest": stamp(latest)}}


def _failure(failure: Failure) -> Json:
    return {
        "partition": cut(failure.partition, _PARTITION),
        "error": cut(failure.error, _ERROR),
        "job": failure.job,
        "attempts": failure.attempts,
    }


def conditions(report: Report, previous: Sequence[Mapping[str, Any]], now: datetime) -> list[Json]:
    """The conditions of a standing, sorted by type, each with all six fields."""
    before = {str(condition.get("type")): condition for condition in previous}
    truths = dict(_TABLE[report.standing.stand])
    if report.standing.stand in _FOLLOWS_READY_WHEN and report.ready_when == "Finished":
        truths["Ready"] = "False"
    found = {kind: _condition(kind, truth, report, before, now) for kind, truth in truths.items()}
    if report.standing.stand is Stand.BLOCKED and _older(found["Blocked"], STALLED_AFTER, now):
        found["Stalled"] = _condition("Stalled", "True", report, before, now)
    return [found[kind] for kind in sorted(found)]


def _condition(kind: str, truth: Truth, report: Report, before: Mapping[str, Mapping[str, Any]], now: datetime) -> Json:
    old = before.get(kind, {})
    since = old.get("lastTransitionTime") if old.get("status") == truth else None
    return {
        "type": kind,
        "status": truth,
        "observedGeneration": report.generation,
        "lastTransitionTime": since or stamp(now),
        "reason": report.standing.reason,
        "message": cut(report.standing.message, _MESSAGE),
    }


def _older(condition: Json, age: timedelta, now: datetime) -> bool:
    return now - datetime.fromisoformat(condition["lastTransitionTime"]) >= age


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it, in whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def cut(text: str, length: int) -> str:
    """`text`, or its beginning and an ellipsis, in at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


_PROGRESS_ONLY = ("counts", "activeBatches", "progress", "rate", "eta", "summary", "failures")


def differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Literal["no", "progress", "yes"]:
    """Whether a status must be written: not at all, when there is time, or at once."""
    if _canonical(old) == _canonical(new):
        return "no"
    return "progress" if _essence(old) == _essence(new) else "yes"


def _essence(status: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in status.items() if key not in _PROGRESS_ONLY}
    kept["conditions"] = [
        {key: value for key, value in condition.items() if key != "message"}
        for condition in status.get("conditions") or []
    ]
    return _canonical(kept)


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
