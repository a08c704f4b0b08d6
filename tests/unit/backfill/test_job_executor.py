"""What the Jobs' executor asks of the API server when it stops runs: real requests, to a server that takes notes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from flowstone.api.parse import parse_backfill
from flowstone.backfill import job_views
from flowstone.backfill.edges.assets import Assets
from flowstone.backfill.edges.job_executor import JobExecutor
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.seen_jobs import BELIEVED, SeenJobs
from flowstone.backfill.edges.tenants import Tenants
from flowstone.backfill.records import OpenBatch
from flowstone.executor.jobs import LABEL_FENCE, LABEL_UID
from flowstone.executor.port import Ended, View
from flowstone.kube.client import Kube

COMPLETE = {"type": "Complete", "status": "True"}
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BATCH = OpenBatch(7, "n/c/ns", "job-7", "job-uid", "digest", True, 2, 2, 0, NOW - timedelta(minutes=30))
JOBS_PATH = "/apis/batch/v1/namespaces/ns/jobs"
JOB_PATH = f"{JOBS_PATH}/job-7"
PODS_PATH = "/api/v1/namespaces/ns/pods"
POD_PATH = f"{PODS_PATH}/pod-7"


OVER = {"metadata": {"name": "job-7", "uid": "job-uid"}, "status": {"succeeded": 1, "conditions": [COMPLETE]}}


@dataclass
class Notes:
    """What was asked for: deletions by path, uid and seconds of grace; reads by path and selector of labels."""

    deletions: list[tuple[str, str | None, int | None]] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    async def give(self, request: web.Request) -> web.Response:
        """Note a read of a server that has one Job, which ended well."""
        self.reads.append(request.path)
        self.labels.append(request.query.get("labelSelector", ""))
        return web.json_response(OVER if request.path == JOB_PATH else {"items": [OVER], "metadata": {}})

    async def take(self, request: web.Request) -> web.Response:
        """Note a request and grant it."""
        body = await request.json()
        uid = body.get("preconditions", {}).get("uid")
        self.deletions.append((request.path, uid, body.get("gracePeriodSeconds")))
        return web.json_response({})


@pytest.fixture
def notes() -> Notes:
    """What the server was asked for."""
    return Notes()


@dataclass
class Time:
    """A clock that stands until it is moved."""

    now: float = 0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock() -> Time:
    """The replica's clock."""
    return Time()


@pytest.fixture
def told(clock: Time) -> SeenJobs:
    """What a watch of all namespaces tells."""
    return SeenJobs(clock=clock)


@pytest.fixture
async def executor(notes: Notes, told: SeenJobs) -> AsyncIterator[JobExecutor]:
    """An executor of a Backfill in namespace `ns`; a node counts as lost for good after 300 s."""
    application = web.Application()
    application.router.add_get("/{path:.*}", notes.give)
    application.router.add_delete("/{path:.*}", notes.take)
    async with TestServer(application) as server:
        api = client.ApiClient(client.Configuration(host=str(server.make_url("")).rstrip("/")))
        kube = Kube(api, count=lambda verb, status: None)
        nothing = object()  # neither an Asset nor a login is needed to stop what runs
        yield JobExecutor(
            kube=kube,
            assets=cast("Assets", nothing),
            login=cast("NamespaceLogin", nothing),
            tenants=cast("Tenants", nothing),
            seen=told,
            backfill=parse_backfill({"metadata": {"name": "b", "namespace": "ns", "uid": "u"}, "spec": {"asset": "a"}}),
            cluster="c",
            now=lambda: NOW,
            node_lost=timedelta(seconds=300),
        )
        await kube.close()


def seen(*, job: bool = True, deleted: timedelta | None = None, phase: str = "Running") -> View:
    """An open batch with its Job, if it is still there, and a pod that should have ended so long ago."""
    pod: dict[str, Any] = {
        "metadata": {"name": "pod-7", "uid": "pod-uid", "labels": {LABEL_FENCE: "7"}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    if deleted is not None:
        pod["metadata"]["deletionTimestamp"] = (NOW - deleted).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = {"metadata": {"name": "job-7", "uid": "job-uid"}, "status": {"active": 1}} if job else None
    return job_views.view(BATCH, made, [pod], NOW)


async def test_a_run_is_stopped_by_deleting_its_job(executor: JobExecutor, notes: Notes) -> None:
    """Its pod has its time for an orderly end."""
    await executor.stop([seen()])
    assert notes.deletions == [(JOB_PATH, None, None)]


async def test_a_run_that_is_stopping_is_left_alone(executor: JobExecutor, notes: Notes) -> None:
    """Lost for five minutes and not longer, it is waited for."""
    view = seen(deleted=timedelta(seconds=300))
    assert (view.stopping, view.lost) == (True, True)
    await executor.stop([view])
    assert notes.deletions == []


async def test_a_pod_on_a_lost_node_is_taken_away_by_force(executor: JobExecutor, notes: Notes) -> None:
    """After five minutes first the Job goes, then its pod without grace; both by uid."""
    await executor.stop([seen(deleted=timedelta(seconds=301))])
    assert notes.deletions == [(JOB_PATH, "job-uid", None), (POD_PATH, "pod-uid", 0)]


async def test_a_pod_whose_job_is_gone_is_taken_away_too(executor: JobExecutor, notes: Notes) -> None:
    """Somebody deleted the Job; the pod on the lost node is all that is left."""
    await executor.stop([seen(job=False, deleted=timedelta(hours=1))])
    assert notes.deletions == [(POD_PATH, "pod-uid", 0)]


async def test_a_pod_that_has_ended_is_nobodys_trouble(executor: JobExecutor, notes: Notes) -> None:
    """A pod that is over acts no more, however long its deletion takes."""
    await executor.stop([seen(job=False, deleted=timedelta(hours=1), phase="Failed")])
    assert notes.deletions == []


ENDED = Ended(succeeded=True, exit_code=0, reason="Completed")


def event(name: str, uid: str = "u", **status: object) -> dict[str, Any]:
    """A Job of a Backfill, as a watch tells of it."""
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": "job-uid", "labels": {LABEL_UID: uid}},
        "status": status,
    }


async def test_jobs_are_read_once_and_then_seen(executor: JobExecutor, notes: Notes, told: SeenJobs) -> None:
    """The first look asks the server; the next one takes what the watch told, of this Backfill alone."""
    told.follow(None, anew=True)
    told.take("ADDED", event("job-7"))
    told.take("ADDED", event("job-8", "another"))
    first = await executor.look([BATCH])
    told.take("MODIFIED", event("job-7", succeeded=1, conditions=[COMPLETE]))
    second = await executor.look([BATCH])
    assert notes.reads == [JOBS_PATH]
    assert [one.run for sight in (first, second) for one in sight.seen] == [ENDED] * 2
    assert list(second.runs) == ["job-7"]


async def test_a_watch_is_not_believed_for_ever(
    executor: JobExecutor, notes: Notes, told: SeenJobs, clock: Time
) -> None:
    """It may have fallen silent, so the server is asked every few seconds, and at once when the watch has ended."""
    told.follow(None, anew=True)
    told.take("ADDED", event("job-7", succeeded=1, conditions=[COMPLETE]))
    for now in (0, BELIEVED - 0.1, BELIEVED):
        clock.now = now
        await executor.look([BATCH])
    assert notes.reads == [JOBS_PATH] * 2
    told.lose(None)
    await executor.look([BATCH])
    assert notes.reads == [JOBS_PATH] * 3


async def test_a_job_of_which_nothing_was_told_is_asked_for(
    executor: JobExecutor, notes: Notes, told: SeenJobs
) -> None:
    """The watch may lag behind what the ledger knows; only the server can say that a Job is gone."""
    told.follow("ns", anew=True)
    told.take("ADDED", event("job-6", active=1))
    await executor.look([BATCH])
    assert [one.run for one in (await executor.look([BATCH])).seen] == [ENDED]
    assert notes.reads == [JOBS_PATH, JOB_PATH]


async def test_at_rest_the_server_is_asked(executor: JobExecutor, notes: Notes, told: SeenJobs) -> None:
    """Without an open batch, whatever is left is named, so that it is tidied."""
    told.follow(None, anew=True)
    told.take("ADDED", event("job-7"))
    for _ in range(2):
        assert list((await executor.look([])).runs) == ["job-7"]
    assert notes.reads == [JOBS_PATH] * 2


async def test_only_pods_of_batches_that_raise_a_question_are_read(executor: JobExecutor, notes: Notes) -> None:
    """A batch whose Job is gone has its pods looked for, by its fence."""
    await executor.look([replace(BATCH, job_name="job-8", fence=8)])
    assert notes.reads == [JOBS_PATH, PODS_PATH]
    assert notes.labels[-1] == "flowstone.dev/backfill-uid=u,flowstone.dev/fence in (8)"


def test_many_batches_are_not_named_one_by_one() -> None:
    """The address of a request has its limits, so then all pods of the backfill are read."""
    few, many = (job_views.pods_selector("u", range(number)) for number in (200, 201))
    assert few.endswith(" in (" + ",".join(map(str, range(200))) + ")")
    assert many == "flowstone.dev/backfill-uid=u"
