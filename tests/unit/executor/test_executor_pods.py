"""What is read from a Job and its pod."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.executor.pods import run_state
from flowstone.executor.port import Ended, Gone, Running

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def job(*conditions: str, deleted: bool = False, **status: Any) -> dict[str, Any]:
    """Return a Job on which these conditions are true."""
    true = [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "m"} for kind in conditions]
    metadata = {"uid": "j", **({"deletionTimestamp": "2026-01-01T11:59:59Z"} if deleted else {})}
    return {"metadata": metadata, "status": {"conditions": true, **status}}


def pod(phase: str, *containers: dict[str, Any], deleted: str = "", target: str = "", **status: Any) -> dict[str, Any]:
    """Return a pod with its containers' states, in order."""
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": target, "message": "go"}] if target else []
    metadata = {"uid": "p", "creationTimestamp": "2026-01-01T11:00:00Z"}
    return {
        "metadata": {**metadata, **({"deletionTimestamp": deleted} if deleted else {})},
        "status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{"name": f"c{index}", "state": state} for index, state in enumerate(containers)],
            **status,
        },
    }


def ended(code: int, reason: str = "Error", message: str = "", at: str = "2026-01-01T11:30:00Z") -> dict[str, Any]:
    """Return the state of a container that ended."""
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}}


RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T11:00:01Z"}}
WAITING: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(
    ("found", "pods", "expected"),
    [
        (job(), [], Running()),
        (job(active=1), [pod("Pending", WAITING)], Running()),
        (job(active=1), [pod("Running", RUNNING)], Running(ready=True)),
        (job(active=1), [pod("Running", conditions=READY)], Running(ready=True)),
        (job(active=1), [pod("Succeeded", ended(0, "Completed"))], Running(ready=True)),
        # Complete and Failed count only when no pod acts any more.
        (job("Complete", active=1), [], Running()),
        (job("Failed", terminating=1), [pod("Running", RUNNING)], Running(ready=True)),
        (job("FailureTarget"), [], Running()),
        # Asked to go, and still there.
        (job(deleted=True), [], Running(stopping=True)),
        (
            job(terminating=1),
            [pod("Running", RUNNING, deleted="2026-01-01T12:00:20Z")],
            Running(ready=True, stopping=True),
        ),
        # Overdue by 6 s: its node does not answer.
        (
            job(terminating=1),
            [pod("Running", RUNNING, deleted="2026-01-01T11:59:54Z")],
            Running(ready=True, stopping=True, lost=True),
        ),
        # Overdue by 4 s: clocks differ by more.
        (
            job(terminating=1),
            [pod("Running", RUNNING, deleted="2026-01-01T11:59:56Z")],
            Running(ready=True, stopping=True),
        ),
        # The node was tainted away: lost before its time is up.
        (
            job(terminating=1),
            [pod("Running", RUNNING, deleted="2026-01-01T12:00:20Z", target="DeletionByTaintManager")],
            Running(ready=True, stopping=True, lost=True),
        ),
        # The Job is gone.
        (None, [], Gone()),
        (None, [pod("Failed", ended(1)), pod("Succeeded")], Gone()),
        (None, [pod("Running", RUNNING)], Running(ready=True, stopping=True)),
    ],
)
def test_run_that_is_not_over(found: Any, pods: list[Any], expected: Any) -> None:
    """A run is under way until Job and pods can act no more; a Job that is gone leaves no outcome."""
    assert run_state(found, pods, NOW) == expected


def test_complete_job_succeeded() -> None:
    """A Complete Job ended with exit code 0."""
    state = run_state(job("Complete", succeeded=1), [pod("Succeeded", ended(0, "Completed"))], NOW)
    assert state == Ended(succeeded=True, exit_code=0, reason="Completed")


def test_failed_container_is_named_with_its_log() -> None:
    """A crash is told by exit code, reason and the last lines of the log, and is not a disruption."""
    state = run_state(job("Failed"), [pod("Failed", ended(137, "OOMKilled", "line\n"))], NOW)
    assert state == Ended(succeeded=False, exit_code=137, reason="OOMKilled", message="container c0: line")


def test_first_failure_is_the_cause() -> None:
    """Of several failed containers the one that ended first counts; one that ended with 0 does not."""
    later, first = ended(143, at="2026-01-01T11:40:00Z"), ended(3, message="no", at="2026-01-01T11:30:00Z")
    state = run_state(job("Failed"), [pod("Failed", ended(0, at="2026-01-01T11:10:00Z"), later, first)], NOW)
    assert isinstance(state, Ended)
    assert (state.exit_code, state.message) == (3, "container c2: no")


def test_failed_init_container_counts() -> None:
    """An init container that fails is the cause although the main container never ran."""
    statuses = [{"name": "first", "state": ended(2, message="bad")}]
    state = run_state(job("Failed"), [pod("Failed", WAITING, initContainerStatuses=statuses)], NOW)
    assert state == Ended(succeeded=False, exit_code=2, reason="Error", message="container first: bad")


def test_a_command_that_never_ran_is_told_apart() -> None:
    """The runtime could not start it: with its own words, and no fault of what it would have worked on."""
    words = "exec: nope: executable file not found"
    state = run_state(job("Failed"), [pod("Failed", ended(128, "StartError", message=words))], NOW)
    assert state == Ended(
        succeeded=False, exit_code=128, reason="StartError", message=f"container c0: {words}", unstarted=True
    )


DEADLINE = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}


@pytest.mark.parametrize(
    ("failed", "code", "reason"),
    [
        (pod("Failed", ended(143), **DEADLINE), 143, "DeadlineExceeded"),
        # It listened to SIGTERM and ended well, and yet had not done what it was to do.
        (pod("Failed", ended(0, "Completed"), **DEADLINE), None, "DeadlineExceeded"),
        # The deadline met what another container had left.
        (pod("Failed", ended(137, "OOMKilled"), **DEADLINE), 137, "OOMKilled"),
    ],
)
def test_a_deadline_is_named_and_no_disruption(failed: Any, code: int | None, reason: str) -> None:
    """The containers' ends say only that they were stopped; the pod says why, and its template asked for that."""
    state = run_state(job("Failed"), [failed], NOW)
    assert state == Ended(succeeded=False, exit_code=code, reason=reason, message=DEADLINE["message"])


def test_a_deadline_of_the_job_is_named() -> None:
    """Whoever set it (a template cannot): the Job controller takes the pod away, and the Job says why."""
    late = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active longer"}
    state = run_state({"metadata": {"uid": "j"}, "status": {"conditions": [late]}}, [], NOW)
    assert isinstance(state, Ended)
    assert (state.disrupted, state.message) == (True, "The pod is gone; its Job says: Job was active longer")


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (pod("Failed", ended(143), deleted="2026-01-01T11:00:00Z"), "Error"),
        (pod("Failed", ended(137), target="PreemptionByScheduler"), "Error"),
        (pod("Failed", target="EvictionByEvictionAPI"), "EvictionByEvictionAPI"),
        (pod("Failed", reason="OutOfcpu", message="Pod was rejected"), "OutOfcpu"),
        (pod("Failed", WAITING, reason="UnexpectedAdmissionError"), "UnexpectedAdmissionError"),
        (pod("Failed", ended(137, "ContainerStatusUnknown")), "ContainerStatusUnknown"),
    ],
)
def test_disruptions_are_told_apart(failed: Any, reason: str) -> None:
    """Deletion, eviction, preemption, refusal by the kubelet and a lost container charge nobody."""
    state = run_state(job("Failed"), [failed], NOW)
    assert isinstance(state, Ended)
    assert (state.succeeded, state.disrupted, state.reason) == (False, True, reason)


def test_failed_job_without_a_pod_was_disrupted() -> None:
    """A failed pod stays until it is deleted, so a failed Job without one had its pod taken away."""
    state = run_state(job("Failed"), [], NOW)
    assert state == Ended(succeeded=False, disrupted=True, reason="PodGone", message="The pod is gone; its Job says: m")


@pytest.mark.parametrize("code", [0, 1])
def test_outcomes_of_a_worker_without_a_database(code: int) -> None:
    """Positions in the termination message are read whether the container ended well or not, and are no log."""
    message = '{"flowstone":1,"succeeded":"0-1","failed":"2","errors":{"2":"ValueError: x"}}'
    found = job("Failed" if code else "Complete")
    state = run_state(found, [pod("Failed" if code else "Succeeded", ended(code, message=message))], NOW)
    assert isinstance(state, Ended)
    assert state.positions == ((0, ""), (1, ""), (2, "ValueError: x"))
    assert "flowstone" not in state.message
