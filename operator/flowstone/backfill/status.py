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

from flowstone.api.fit import fitted
from flowstone.backfill.records import Counts, Failure, Interval
from flowstone.backfill.standing import Stand, Standing

Json = dict[str, Any]
Truth = Literal["True", "False", "Unknown"]

STALLED_AFTER = timedelta(minutes=5)
"""A backfill blocked for longer counts as stalled: people should look."""

_FORESEEABLE = 5 * 365 * 24 * 60
"""Minutes for which an estimate makes any sense."""

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
    Stand.WAITING: _UNDER_WAY | {"Blocked": "True"},
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
class Details:
    """What costs a look at many rows.

    Attributes:
        rate: Partitions finished per minute of late; None when nothing was.
        succeeded: Intervals for people.
        failed: Intervals for people.
    """

    failures: Sequence[Failure] = ()
    rate: float | None = None
    succeeded: str = ""
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a status is made of; what is None could not be looked up, and stays as it was written before."""

    standing: Standing
    counts: Counts | None
    generation: int
    ready_when: str
    delivery: str | None = None
    active_batches: int = 0
    details: Details | None = None


_COUNTED = ("counts", "activeBatches", "progress")
_DETAILED = ("failures", "summary", "rate", "eta")


def phase(standing: Standing) -> str:
    """The phase that goes with a standing."""
    return _PHASES.get(standing.stand, str(standing.stand))


def compose(report: Report, previous: Mapping[str, Any], now: datetime) -> Json:
    """The whole status; `previous` is the one there now, whose transition times live on."""
    status: Json = {
        "observedGeneration": report.generation,
        "phase": phase(report.standing),
        "conditions": conditions(report, previous.get("conditions") or [], now),
    }
    counts, details = report.counts, report.details
    status |= _kept(previous, _COUNTED) if counts is None else _counted(counts, report.active_batches)
    status |= _kept(previous, ("delivery",)) if report.delivery is None else {"delivery": report.delivery}
    status |= _kept(previous, _DETAILED) if details is None else _detailed(details)
    if report.standing.finished and previous.get("phase") == status["phase"]:
        status.pop("rate", None)  # the rate of late fades, and what is over is not written again and again
        status |= _kept(previous, ("rate",))
    elif counts and details and details.rate and not report.standing.finished:
        status |= _eta(counts.open / details.rate, now)
    return fitted(status)


def _kept(previous: Mapping[str, Any], keys: Sequence[str]) -> Json:
    return {key: previous[key] for key in keys if key in previous}


def _counted(counts: Counts, active_batches: int) -> Json:
    return {"counts": asdict(counts), "activeBatches": active_batches, "progress": progress(counts)}


def _detailed(details: Details) -> Json:
    status: Json = {
        "failures": [_failure(failure) for failure in details.failures[:10]],
        "summary": {"succeeded": cut(details.succeeded, _SUMMARY), "failed": cut(details.failed, _SUMMARY)},
    }
    return status | ({"rate": round(details.rate, 1)} if details.rate else {})


def _eta(minutes: float, now: datetime) -> Json:
    """Three quarters to one and a half times what the rate promises: what a rate over a minute is worth."""
    if minutes > _FORESEEABLE:
        return {}
    earliest, latest = (now + timedelta(minutes=minutes * factor) for factor in (0.75, 1.5))
    return {"eta": {"earliest": stamp(earliest), "latest": stamp(latest)}}


def progress(counts: Counts) -> int:
    """Percent of the partitions that need nothing any more, rounded down: 100 means all."""
    return 100 * counts.finished // counts.total if counts.total else 0


def _failure(failure: Failure) -> Json:
    return {
        "partition": cut(printable(failure.partition), _PARTITION),
        "error": cut(printable(failure.error), _ERROR),
        "job": failure.job,
        "attempts": failure.attempts,
    }


def conditions(report: Report, previous: Sequence[Mapping[str, Any]], now: datetime) -> list[Json]:
    """The conditions of a standing, sorted by type, each with all six fields."""
    standing = report.standing
    truths = dict(_TABLE[standing.stand])
    if standing.stand in _FOLLOWS_READY_WHEN and report.ready_when == "Finished":
        truths["Ready"] = "False"
    found = transitions(truths, standing.reason, standing.message, report.generation, previous, now)
    blocked = next((one for one in found if one["type"] == "Blocked"), None)
    if standing.stand is Stand.BLOCKED and blocked and _older(blocked, STALLED_AFTER, now):
        truths["Stalled"] = "True"
        found = transitions(truths, standing.reason, standing.message, report.generation, previous, now)
    return found


def transitions(
    truths: Mapping[str, Truth],
    reason: str,
    message: str,
    generation: int,
    previous: Sequence[Mapping[str, Any]],
    now: datetime,
) -> list[Json]:
    """Conditions that share reason and message; one whose truth stays as it was keeps its transition time."""
    before = {str(one.get("type")): one for one in previous}

    def since(kind: str) -> str:
        old = before.get(kind, {})
        kept = old.get("lastTransitionTime") if old.get("status") == truths[kind] else None
        return str(kept or stamp(now))

    return [
        {
            "type": kind,
            "status": truths[kind],
            "observedGeneration": generation,
            "lastTransitionTime": since(kind),
            "reason": reason,
            "message": cut(printable(message), _MESSAGE),
        }
        for kind in sorted(truths)
    ]


def _older(condition: Json, age: timedelta, now: datetime) -> bool:
    return now - datetime.fromisoformat(condition["lastTransitionTime"]) >= age


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it, in whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def intervals_text(intervals: Sequence[Interval]) -> str:
    """Intervals for people: `2013-01-01..2013-03-31, 2013-04-02 (91)`; empty for none."""
    if not intervals:
        return ""
    parts = [one.first if one.count == 1 else f"{one.first}..{one.last}" for one in intervals]
    return f"{', '.join(parts)} ({sum(one.count for one in intervals)})"


def printable(text: str) -> str:
    """`text` with control characters and directional marks escaped, so that no error moves a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)


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
