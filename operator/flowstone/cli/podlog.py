"""Which log to read for a partition, and what to say where there is none. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flowstone.executor.blockage import blockage
from flowstone.executor.jobs import ANNOTATION_KEYS

Json = Mapping[str, Any]
JsonObject = dict[str, Any]


def job_of(resource: Json, partition: str, jobs: Sequence[JsonObject]) -> JsonObject | None:
    """The Job that a Backfill's status names for a failed partition, else the newest one that has the partition."""
    failed = [str(one.get("job")) for one in _failures(resource) if one["partition"] == partition]
    named = [one for one in jobs if one["metadata"]["name"] in failed]
    holding = [one for one in jobs if partition in _keys(one)]
    return max(named or holding, key=lambda one: str(one["metadata"]["creationTimestamp"]), default=None)


def jobless(resource: Json, partition: str) -> str:
    """What to say about a partition that no Job has."""
    failure = next((one for one in _failures(resource) if one["partition"] == partition), None)
    if failure is not None:
        return f"its Job is gone, and its log with it; its error was: {failure.get('error')}"
    name = f"{resource['metadata']['name']} -n {resource['metadata']['namespace']}"
    return (
        "no Job works on it now, and Jobs of finished batches are deleted with their logs; "
        f"`flowstone backfill explain {name}` has the latest error, if there is one"
    )


def _failures(resource: Json) -> Sequence[Json]:
    return (resource.get("status") or {}).get("failures") or []


def _keys(job: Json) -> list[str]:
    annotations = job["spec"]["template"]["metadata"].get("annotations") or {}
    return str(annotations.get(ANNOTATION_KEYS, "")).split("\n")


def container_of(pod: Json) -> str:
    """The container whose log matters: main, unless another one failed first or still runs before main can start."""
    states, main = _states(pod), str(pod["spec"]["containers"][0]["name"])
    ended = _ended(states)
    if any(name == main and not end.get("exitCode") for name, end in ended):
        return main  # a sidecar that is stopped afterwards ends with an exit code too
    failed = [(str(end.get("finishedAt") or ""), name) for name, end in ended if end.get("exitCode")]
    early = [] if _has_started(states, main) else [name for name, state in states if "running" in state]
    sidecars = _sidecars(pod)
    return min(failed)[1] if failed else next((name for name in early if name not in sidecars), main)


def _sidecars(pod: Json) -> list[str]:
    """Containers that run beside main: their logs say nothing about what main waits for."""
    beginning = pod["spec"].get("initContainers") or []
    beside = [one for one in beginning if one.get("restartPolicy") == "Always"]
    return [str(one["name"]) for one in (*beside, *pod["spec"]["containers"][1:])]


def unstarted(job: Json, pods: Sequence[Json], events: Sequence[Json], now: datetime) -> str:
    """Why there is no log of an open Job, as nothing of it has started; "" when there should be one.

    Args:
        pods: Its pods; none where they are gone, or were never made.
        events: The namespace's core Events.
    """
    if not pods and _had_pod(job):
        return ""
    if pods and _has_started(_states(pods[-1]), container_of(pods[-1])):
        return ""
    known = blockage(job, pods[-1:], events, now)
    why = f"{known.reason}: {known.message}" if known else _waits(pods[-1]) if pods else "nobody says why"
    what = f"container {container_of(pods[-1])} has not started" if pods else "no pod of it has been made"
    return f"{what}: {why}"


def silence(pod: Json) -> str:
    """What to say about an empty log: how its container ended."""
    name = container_of(pod)
    ended = next((ended for one, ended in _ended(_states(pod)) if one == name), None)
    if ended is None:
        return f"container {name} has written nothing yet"
    message = str(ended.get("message") or "").strip()
    words = f"container {name} wrote nothing; it ended with exit code {ended.get('exitCode')}"
    return words + (f" ({ended['reason']})" if ended.get("reason") else "") + (f": {message}" if message else "")


def _had_pod(job: Json) -> bool:
    status = job.get("status") or {}
    return any(status.get(name) for name in ("active", "succeeded", "failed", "terminating", "conditions"))


def _states(pod: Json) -> list[tuple[str, Json]]:
    """Each container with its state, those of the beginning first."""
    status = pod.get("status") or {}
    listed = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return [(str(one["name"]), one.get("state") or {}) for one in listed]


def _ended(states: Sequence[tuple[str, Json]]) -> list[tuple[str, Json]]:
    return [(name, state["terminated"]) for name, state in states if state.get("terminated")]


def _has_started(states: Sequence[tuple[str, Json]], container: str) -> bool:
    return any(name == container and ("running" in state or "terminated" in state) for name, state in states)


def _waits(pod: Json) -> str:
    waiting = [state["waiting"] for _, state in _states(pod) if state.get("waiting")]
    if waiting:
        return str(waiting[-1].get("reason"))
    status = pod.get("status") or {}
    return ": ".join(
        [f"the pod is {status.get('phase')}", *filter(None, [status.get("reason"), status.get("message")])]
    )
