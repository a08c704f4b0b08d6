"""Why a Job's pod does not start, in the words of whoever refused it.

Three speak: the Job controller (Events of the Job: there is no pod at all), the scheduler (a condition of the pod), the
kubelet (the container's waiting reason, and Events of the pod for volumes and sandboxes). The newest word counts, so
a blockage clears by itself as soon as somebody reports progress. A scheduler that is not there says nothing, and that
is said for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from flowstone.executor.pods import Object, instant
from flowstone.executor.port import Blockage

_GRACE = timedelta(seconds=10)
"""What the kubelet's and the scheduler's own retries heal within this time of a pod's life is no blockage."""

_IMAGE = (
    *("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"),
    *("RegistryUnavailable", "SignatureValidationFailed"),
)
_CONTAINER = {
    **dict.fromkeys(_IMAGE, "ImagePull"),
    "CreateContainerConfigError": "Config",
    "CreateContainerError": "CreateFailed",
    "RunContainerError": "CreateFailed",
}
_REFUSALS = (
    (re.compile(r"exceeded quota|failed quota"), "QuotaExceeded"),
    (re.compile(r"violates PodSecurity"), "PodSecurity"),
    (re.compile(r"serviceaccount \"[^\"]*\" not found|looking up service account"), "ServiceAccount"),
)
_COMBINED = "(combined from similar events): "
"""What the Events of a Job begin with after some minutes; it says nothing about the Job."""

_VOLUME_WORDS = re.compile(r"persistentvolumeclaim|volume node affinity|PersistentVolumeClaims", re.IGNORECASE)
_CREATION = ("FailedCreate", "SuccessfulCreate")
_KUBELET = {
    "FailedMount": "Volume",
    "FailedAttachVolume": "Volume",
    "FailedMapVolume": "Volume",
    "FailedCreatePodSandBox": "CreateFailed",
}
_PROGRESS = ("Pulling", "Pulled", "Created", "Started")


def blockage(job: Object, pods: Sequence[Object], events: Sequence[Object], now: datetime) -> Blockage | None:
    """Return what keeps a Job's pod from starting, or None when nothing is known to.

    Args:
        job: The Job, which has not ended.
        pods: Its pods.
        events: Core `v1` Events of the Job and of its pods; others are ignored.
        now: The time, aware.
    """
    if not pods:
        return _refused(_about(job, events))
    return next(filter(None, (_blocked_pod(pod, _about(pod, events), now) for pod in pods)), None)


def _refused(events: Sequence[Object]) -> Blockage | None:
    last = _newest(one for one in events if one.get("reason") in _CREATION)
    if last is None or last["reason"] != "FailedCreate":
        return None
    message = _words(last)
    reason = next((name for words, name in _REFUSALS if words.search(message)), "CreateFailed")
    return Blockage(reason, message)


def _blocked_pod(pod: Object, events: Sequence[Object], now: datetime) -> Blockage | None:
    if pod["metadata"].get("deletionTimestamp") or pod.get("status", {}).get("phase") != "Pending":
        return None
    waiting = _waiting(pod)
    if waiting is not None or now - instant(pod["metadata"]["creationTimestamp"]) < _GRACE:
        return waiting
    return _unscheduled(pod) or _unseen(pod) or _not_set_up(events)


def _waiting(pod: Object) -> Blockage | None:
    status = pod["status"]
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state: Mapping[str, Any] = one.get("state", {}).get("waiting") or {}
        reason = _CONTAINER.get(state.get("reason", ""))
        if reason:
            return Blockage(reason, f"container {one.get('name')}: {state['reason']}: {state.get('message', '')}")
    return None


def _unscheduled(pod: Object) -> Blockage | None:
    for one in pod["status"].get("conditions") or []:
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            message = str(one.get("message") or one.get("reason") or "")
            if _VOLUME_WORDS.search(message):
                return Blockage("Volume", message)
            return Blockage("Unschedulable", message, waiting=True)
    return None


def _unseen(pod: Object) -> Blockage | None:
    """A pod without a node, of which no scheduler has spoken."""
    spec, conditions = pod.get("spec") or {}, pod["status"].get("conditions") or []
    name = spec.get("schedulerName")
    if not name or spec.get("nodeName") or any(one.get("type") == "PodScheduled" for one in conditions):
        return None
    message = f"no scheduler has looked at the pod yet; its schedulerName is {name!r}: is there one of that name?"
    return Blockage("Unschedulable", message, waiting=True)


def _not_set_up(events: Sequence[Object]) -> Blockage | None:
    last = _newest(one for one in events if one.get("reason") in (*_KUBELET, *_PROGRESS))
    if last is None or last["reason"] in _PROGRESS:
        return None
    # "timed out waiting for the condition" says less than the volume's own error of a moment before.
    own = [one for one in events if re.match(r"(Mount|Attach|Map)Volume", str(one.get("message", "")))]
    told = (_newest(own) if _KUBELET[last["reason"]] == "Volume" else None) or last
    return Blockage(_KUBELET[told["reason"]], _words(told))


def _words(event: Object) -> str:
    return str(event.get("message", "")).removeprefix(_COMBINED)


def _about(owner: Object, events: Iterable[Object]) -> list[Object]:
    uid = owner["metadata"]["uid"]
    return [one for one in events if one.get("involvedObject", {}).get("uid") == uid]


def _newest(events: Iterable[Object]) -> Object | None:
    return max(events, key=_when, default=None)


def _when(event: Object) -> tuple[datetime, int]:
    """Order Events by when they were last seen; the version tells apart those of the same second."""
    series = event.get("series") or {}
    metadata = event.get("metadata") or {}
    seen = (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or metadata.get("creationTimestamp")
        or "1970-01-01T00:00:00Z"
    )
    version = str(metadata.get("resourceVersion") or "0")
    return instant(seen), int(version) if version.isdecimal() else 0
