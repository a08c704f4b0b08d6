"""Why a pod does not start."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.executor.blockage import blockage
from flowstone.executor.port import Blockage

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
JOB = {"metadata": {"uid": "j"}, "status": {}}
QUOTA = 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0'


def event(reason: str, message: str, at: str = "11:59:50", uid: str = "j", version: int = 1) -> dict[str, Any]:
    """Return an Event of the Job, or of the pod with uid `p`."""
    return {
        "metadata": {"resourceVersion": str(version)},
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": message,
        "lastTimestamp": f"2026-01-01T{at}Z",
    }


def pending(*states: dict[str, Any], age: int = 60, **more: Any) -> dict[str, Any]:
    """Return a pending pod of an age in seconds, with its containers' states."""
    created = datetime.fromtimestamp(NOW.timestamp() - age, UTC).isoformat()
    statuses = [{"name": f"c{index}", "state": state} for index, state in enumerate(states)]
    return {
        "metadata": {"uid": "p", "creationTimestamp": created},
        "status": {"phase": "Pending", "containerStatuses": statuses, **more},
    }


def waiting(reason: str, message: str = "why") -> dict[str, Any]:
    """Return the state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


CREATING = waiting("ContainerCreating", "")


def unscheduled(message: str, reason: str = "Unschedulable") -> list[dict[str, str]]:
    """Return the conditions of a pod for which there is no node."""
    return [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (QUOTA, "QuotaExceeded"),
        ('pods "x" is forbidden: failed quota: q: must specify limits.cpu for: main', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true', "PodSecurity"),
        (
            'pods "x" is forbidden: error looking up service account ns/gone: serviceaccount "gone" not found',
            "ServiceAccount",
        ),
        ('admission webhook "w" denied the request: no', "CreateFailed"),
    ],
)
def test_refused_pod_is_named_with_the_servers_words(message: str, reason: str) -> None:
    """Where the API server refuses the pod there are only Events of the Job; their words are passed on."""
    assert blockage(JOB, [], [event("FailedCreate", message)], NOW) == Blockage(reason, message)
    combined = event("FailedCreate", f"(combined from similar events): {message}")
    assert blockage(JOB, [], [combined], NOW) == Blockage(reason, message)


def test_newest_word_counts() -> None:
    """A refusal that was followed by a created pod blocks nothing; an older success does not hide a refusal."""
    refusal, created = event("FailedCreate", QUOTA, "11:59:40"), event("SuccessfulCreate", "pod x", "11:59:50")
    assert blockage(JOB, [], [refusal, created], NOW) is None
    again = event("FailedCreate", QUOTA, "11:59:50", version=2)
    assert blockage(JOB, [], [again, created], NOW) == Blockage("QuotaExceeded", QUOTA)


def test_other_objects_events_are_ignored() -> None:
    """An Event of another Job says nothing about this one; without any Event nothing is known."""
    assert blockage(JOB, [], [event("FailedCreate", QUOTA, uid="other")], NOW) is None
    assert blockage(JOB, [], [], NOW) is None


def test_series_tells_when_an_event_was_last_seen() -> None:
    """An Event of the newer API carries its time in `series` or `eventTime`, with fractions of a second."""
    refusal = event("FailedCreate", QUOTA)
    refusal |= {"lastTimestamp": None, "series": {"lastObservedTime": "2026-01-01T11:59:55.123456Z"}}
    created = event("SuccessfulCreate", "pod x", "11:59:50")
    assert blockage(JOB, [], [refusal, created], NOW) == Blockage("QuotaExceeded", QUOTA)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("ErrImagePull", "ImagePull"),
        ("ImagePullBackOff", "ImagePull"),
        ("ErrImageNeverPull", "ImagePull"),
        ("InvalidImageName", "ImagePull"),
        ("CreateContainerConfigError", "Config"),
        ("CreateContainerError", "CreateFailed"),
    ],
)
def test_waiting_container_is_named_at_once(state: str, reason: str) -> None:
    """What the kubelet says of a container blocks at once, whichever container it is."""
    pod = pending(CREATING, waiting(state), age=1)
    assert blockage(JOB, [pod], [], NOW) == Blockage(reason, f"container c1: {state}: why")


def test_init_container_is_looked_at() -> None:
    """An init container that cannot be pulled keeps the pod from starting just as well."""
    pod = pending(CREATING, initContainerStatuses=[{"name": "first", "state": waiting("ErrImagePull")}])
    assert blockage(JOB, [pod], [], NOW) == Blockage("ImagePull", "container first: ErrImagePull: why")


MOUNT = 'MountVolume.SetUp failed for volume "data" : configmap "gone" not found'


@pytest.mark.parametrize(
    ("age", "events", "expected"),
    [
        (60, [event("FailedMount", MOUNT, uid="p")], Blockage("Volume", MOUNT)),
        (9, [event("FailedMount", MOUNT, uid="p")], None),
        (60, [event("FailedMount", MOUNT, "11:59:40", "p"), event("Pulled", "image", "11:59:50", "p")], None),
        (
            60,
            [
                event("FailedMount", MOUNT, "11:59:40", "p"),
                event("FailedMount", "Unable to attach or mount volumes: timed out", "11:59:50", "p"),
            ],
            Blockage("Volume", MOUNT),
        ),
        (60, [event("FailedCreatePodSandBox", "cni", uid="p")], Blockage("CreateFailed", "cni")),
        (60, [event("FailedMount", MOUNT, uid="other")], None),
        (60, [event("Scheduled", "to node", uid="p")], None),
    ],
)
def test_volume_that_cannot_be_mounted(age: int, events: list[Any], expected: Blockage | None) -> None:
    """A failing mount blocks after 10 s, with the volume's own error; progress since then clears it."""
    assert blockage(JOB, [pending(CREATING, age=age)], events, NOW) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu.", "Unschedulable"),
        ('0/1 nodes are available: persistentvolumeclaim "gone" not found.', "Volume"),
        ("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.", "Volume"),
    ],
)
def test_pod_without_a_node(message: str, expected: str) -> None:
    """A pod for which there is no room only waits; one whose claim is missing is blocked by its volume."""
    pod = pending(conditions=unscheduled(message))
    assert blockage(JOB, [pod], [], NOW) == Blockage(expected, message, waiting=expected == "Unschedulable")


def test_gated_pod_waits() -> None:
    """A scheduling gate has no message; its reason is passed on."""
    pod = pending(conditions=unscheduled("", "SchedulingGated"))
    assert blockage(JOB, [pod], [], NOW) == Blockage("Unschedulable", "SchedulingGated", waiting=True)


@pytest.mark.parametrize(("age", "known"), [(9, False), (10, True)])
def test_pod_of_no_scheduler(age: int, known: bool) -> None:
    """A scheduler that is not there says nothing, neither in a condition nor by an Event; it is named all the same."""
    pod = pending(age=age) | {"spec": {"schedulerName": "nobody"}}
    words = "no scheduler has looked at the pod yet; its schedulerName is 'nobody': is there one of that name?"
    assert blockage(JOB, [pod], [], NOW) == (Blockage("Unschedulable", words, waiting=True) if known else None)


@pytest.mark.parametrize(
    "pod",
    [
        {**pending(waiting("ErrImagePull")), "metadata": {"uid": "p", "deletionTimestamp": "2026-01-01T12:00:00Z"}},
        pending({"running": {}}, phase="Running"),
        pending(CREATING, age=1),
    ],
    ids=["going", "running", "new"],
)
def test_pod_that_is_not_blocked(pod: Any) -> None:
    """A pod that goes, runs or has just been made is not blocked."""
    assert blockage(JOB, [pod], [], NOW) is None
