"""What became of a Job and its pod, read from the API server's raw objects.

1. A run is over only when nothing of it can act any more: the Job is Complete or Failed and no pod of it is active or
   terminating, or the Job is gone and each pod it left has ended. Until then its slot is taken.
2. A pod that was asked to go (it has a deletionTimestamp), that failed without any container status (the kubelet never
   admitted it), or that carries DisruptionTarget was *disrupted*: charge nobody, whatever the Job's reason says.
3. A failed Job without a pod was disrupted too: failed pods stay until somebody deletes them.
4. A pod is *lost* when its node was tainted away from it, or when it outlived its own deletionTimestamp, which already
   includes the time it had for an orderly end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from flowstone.executor.port import Ended, Gone, Running, RunState
from flowstone.worker.termination import read_positions

Object = Mapping[str, Any]

_ENDED_PHASES = ("Succeeded", "Failed")

_OVERDUE = timedelta(seconds=5)
"""A pod may outlive its deletionTimestamp this long (clocks differ, the kubelet is busy) before it counts as lost."""

_UNSTARTED_REASONS = ("StartError", "ContainerCannotRun")
"""Reasons of a container's end that say its command never ran."""

_BARE = "Error"
"""Reason of a container's end that says no more than its exit code; the pod's own reason then says more."""

_PLATFORM_REASONS = ("ContainerStatusUnknown", "Unknown")
"""Reasons of a container's end that say its runtime lost sight of it, as after the node's restart."""


def run_state(job: Object | None, pods: Sequence[Object], now: datetime) -> RunState:
    """Return where a batch's run stands.

    Args:
        job: The Job as the API server has it, or None when it is gone.
        pods: The pods that carry the batch's fence.
        now: The time, aware.
    """
    if job is None:
        return _without_job(pods, now)
    if _true(job, "Complete") and not _acting(job):
        return _complete(pods)
    if _true(job, "Failed") and not _acting(job):
        return _failed(job, pods)
    return _running(pods, now, stopping=_deleted(job))


def _without_job(pods: Sequence[Object], now: datetime) -> RunState:
    if all(has_ended(pod) for pod in pods):
        return Gone()
    return _running(pods, now, stopping=True)


def _running(pods: Sequence[Object], now: datetime, *, stopping: bool) -> Running:
    return Running(
        ready=any(_started(pod) for pod in pods),
        stopping=stopping or any(_deleted(pod) for pod in pods),
        lost=any(_lost(pod, now) for pod in pods),
    )


def _complete(pods: Sequence[Object]) -> Ended:
    messages = [_message(ended) for pod in pods for _, ended in _terminated(pod, "containerStatuses")]
    return Ended(succeeded=True, exit_code=0, reason="Completed", positions=_positions(messages))


def _failed(job: Object, pods: Sequence[Object]) -> Ended:
    if not pods:
        said = _condition(job, "Failed")
        return Ended(
            succeeded=False,
            disrupted=True,
            reason="PodGone",
            message=f"The pod is gone; its Job says: {said.get('message', 'nothing')}",
        )
    pod = max(pods, key=lambda one: str(one["metadata"].get("creationTimestamp", "")))
    return _failed_pod(job, pod)


def _failed_pod(job: Object, pod: Object) -> Ended:
    container, ended = _culprit(pod)
    target = _condition(pod, "DisruptionTarget")
    status = pod.get("status", {})
    messages = [_message(one) for _, one in _terminated(pod, "containerStatuses")]
    log = _message(ended).strip()
    return Ended(
        succeeded=False,
        exit_code=ended.get("exitCode"),
        disrupted=_disrupted(pod),
        reason=_first(
            _telling(ended), status.get("reason"), ended.get("reason"), target.get("reason"), _job_reason(job)
        ),
        message=_first(
            f"container {container}: {log}" if log and read_positions(log) is None else "",
            status.get("message"),
            target.get("message"),
            _condition(job, "Failed").get("message"),
        ),
        positions=_positions(messages),
        unstarted=ended.get("reason") in _UNSTARTED_REASONS,
    )


def _culprit(pod: Object) -> tuple[str, Object]:
    """Return the container that failed first, or an empty one when none ever told its end."""
    ended = [*_terminated(pod, "initContainerStatuses"), *_terminated(pod, "containerStatuses")]
    failed = [one for one in ended if one[1].get("exitCode")]
    return min(failed, key=lambda one: str(one[1].get("finishedAt") or "")) if failed else ("", {})


def _telling(ended: Object) -> str:
    reason = str(ended.get("reason") or "")
    return "" if reason == _BARE else reason


def _disrupted(pod: Object) -> bool:
    if _deleted(pod) or _true(pod, "DisruptionTarget"):
        return True
    ended = [*_terminated(pod, "initContainerStatuses"), *_terminated(pod, "containerStatuses")]
    return not ended or any(one.get("reason") in _PLATFORM_REASONS for _, one in ended)


def _started(pod: Object) -> bool:
    if has_ended(pod) or _true(pod, "Ready"):
        return True
    states = [one.get("state", {}) for one in pod.get("status", {}).get("containerStatuses") or []]
    return any("running" in state or "terminated" in state for state in states)


def _lost(pod: Object, now: datetime) -> bool:
    if not _deleted(pod) or has_ended(pod):
        return False
    if _condition(pod, "DisruptionTarget").get("reason") == "DeletionByTaintManager":
        return True
    return now > instant(pod["metadata"]["deletionTimestamp"]) + _OVERDUE


def _terminated(pod: Object, kind: str) -> Iterable[tuple[str, Object]]:
    for one in pod.get("status", {}).get(kind) or []:
        ended = one.get("state", {}).get("terminated")
        if ended:
            yield one.get("name", ""), ended


def _positions(messages: Iterable[str]) -> tuple[tuple[int, str], ...] | None:
    return next((found for found in map(read_positions, messages) if found is not None), None)


def _acting(job: Object) -> bool:
    status = job.get("status", {})
    return bool(status.get("active", 0) + status.get("terminating", 0))


def _job_reason(job: Object) -> str:
    return str(_condition(job, "Failed").get("reason") or "")


def _condition(owner: Object, kind: str) -> Object:
    conditions = owner.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == kind and one.get("status") == "True"), {})


def _true(owner: Object, kind: str) -> bool:
    return bool(_condition(owner, kind))


def _deleted(owner: Object) -> bool:
    return bool(owner["metadata"].get("deletionTimestamp"))


def has_ended(pod: Object) -> bool:
    """Return whether all containers of a pod are over, as far as the API server knows."""
    return _phase(pod) in _ENDED_PHASES


def _phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _message(ended: Object) -> str:
    return str(ended.get("message") or "")


def _first(*texts: object) -> str:
    return next((str(text) for text in texts if text), "")


def instant(text: str) -> datetime:
    """Return the aware instant of one of the API server's timestamps."""
    return datetime.fromisoformat(text).astimezone(UTC)
