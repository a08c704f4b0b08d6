"""Which log `logs` reads, and what it says where there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.cli.podlog import container_of, job_of, jobless, silence, unstarted
from flowstone.executor.jobs import ANNOTATION_KEYS

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

Json = dict[str, Any]

RUNNING: Json = {"running": {}}
DONE: Json = {"terminated": {"exitCode": 0, "reason": "Completed"}}
FAILED: Json = {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-11-24T11:59:00Z"}}
STOPPED: Json = {"terminated": {"exitCode": 143, "finishedAt": "2026-11-24T11:59:30Z"}}
INITIALIZING: Json = {"waiting": {"reason": "PodInitializing"}}
UNPULLED: Json = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
UNFOUND: Json = {"terminated": {"exitCode": 128, "reason": "StartError", "message": 'exec: "nope": not found\n'}}


def job(name: str = "j", keys: str = "a\nb\n", minute: int = 0, **status: object) -> Json:
    """A Job over these partitions, made in this minute."""
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": f"2026-11-24T11:{minute:02}:00Z"},
        "spec": {"template": {"metadata": {"annotations": {ANNOTATION_KEYS: keys}}}},
        "status": status,
    }


def pod(main: Json | None, *, phase: str = "Pending", before: Json | None = None, beside: Json | None = None) -> Json:
    """A pod whose containers are in these states."""
    states = {"main": main, "sidecar": beside}
    listed = [{"name": name, "state": state} for name, state in states.items() if state is not None]
    return {
        "metadata": {"name": "p", "uid": "uid-p", "creationTimestamp": "2026-11-24T11:59:00Z"},
        "spec": {"initContainers": [{"name": "before"}], "containers": [{"name": "main"}, {"name": "sidecar"}]},
        "status": {
            "phase": phase,
            "initContainerStatuses": [{"name": "before", "state": before or DONE}],
            "containerStatuses": listed,
        },
    }


@pytest.mark.parametrize(
    ("given", "container"),
    [
        (pod(None), "main"),
        (pod(RUNNING, beside=RUNNING), "main"),
        (pod(INITIALIZING, before=RUNNING), "before"),
        (pod(INITIALIZING, before=FAILED), "before"),
        (pod(INITIALIZING, beside=RUNNING), "main"),
        (pod(FAILED, beside=STOPPED), "main"),
        (pod(STOPPED, beside=FAILED), "sidecar"),
        (pod(DONE, beside=STOPPED), "main"),
    ],
)
def test_the_container_that_matters(given: Json, container: str) -> None:
    """What failed first, or what main waits for, has something to say; what is stopped afterwards has not."""
    assert container_of(given) == container


def test_a_container_that_never_started_has_no_log() -> None:
    """Its reason is told in the words of whoever knows, or at least what it waits for."""
    said = "container main has not started: ImagePull: container main: ImagePullBackOff: no such image"
    assert unstarted(job(active=1), [pod(UNPULLED)], [], NOW) == said
    assert unstarted(job(active=1), [pod(INITIALIZING)], [], NOW) == "container main has not started: PodInitializing"
    assert unstarted(job(active=1), [pod(None)], [], NOW) == "container main has not started: the pod is Pending"
    refused = pod(None, phase="Failed")
    refused["status"] |= {"reason": "OutOfcpu", "message": "Node has no CPU"}
    told = "container main has not started: the pod is Failed: OutOfcpu: Node has no CPU"
    assert unstarted(job(failed=1), [refused], [], NOW) == told


def test_what_has_started_has_a_log() -> None:
    """Also a container that has ended, and one of the pod's beginning."""
    for one in (pod(RUNNING), pod(FAILED), pod(INITIALIZING, before=RUNNING)):
        assert unstarted(job(active=1), [one], [], NOW) == ""


def test_a_pod_that_was_never_made() -> None:
    """It is not gone: the refusal is told."""
    event = {
        "metadata": {"name": "e", "resourceVersion": "1"},
        "involvedObject": {"uid": "uid-j"},
        "reason": "FailedCreate",
        "message": "pods is forbidden: exceeded quota: none",
        "lastTimestamp": "2026-11-24T11:59:30Z",
    }
    told = f"no pod of it has been made: QuotaExceeded: {event['message']}"
    assert unstarted(job(), [], [event], NOW) == told
    assert unstarted(job(), [], [], NOW) == "no pod of it has been made: nobody says why"
    assert unstarted(job(failed=1), [], [], NOW) == ""


def test_an_empty_log_says_how_its_container_ended() -> None:
    """A command that is not in the image writes nothing, and neither does one that fails in silence."""
    assert silence(pod(RUNNING)) == "container main has written nothing yet"
    assert silence(pod(FAILED)) == "container main wrote nothing; it ended with exit code 3 (Error)"
    ended = "container main wrote nothing; it ended with exit code 128 (StartError)"
    assert silence(pod(UNFOUND)) == f'{ended}: exec: "nope": not found'


def test_the_job_of_a_partition() -> None:
    """The one that the status names for a failure, else the newest that has it."""
    old, new, other = job("old", minute=1), job("new", minute=2), job("other", "c\n", minute=3)
    failure = {"partition": "a", "job": "old", "error": "no warehouse"}
    assert job_of({}, "a", [new, old, other]) == new
    assert job_of({"status": {"failures": [failure]}}, "a", [new, old, other]) == old
    assert job_of({}, "z", [new, old, other]) is None


def test_a_partition_without_a_job() -> None:
    """Its error is told where it is known, and where to look where it is not."""
    backfill: Json = {"metadata": {"name": "b", "namespace": "n"}, "status": {}}
    assert "`flowstone backfill explain b -n n`" in jobless(backfill, "a")
    backfill["status"]["failures"] = [{"partition": "a", "job": "old", "error": "no warehouse"}]
    assert jobless(backfill, "a") == "its Job is gone, and its log with it; its error was: no warehouse"
