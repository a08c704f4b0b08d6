"""A watch, and how Jobs wake their Backfills: real requests, to a server that plays the API server's part."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.errors import KubernetesRefused, KubernetesUnavailable
from flowstone.handlers import job_watch
from flowstone.handlers.job_watch import TOGETHER, follow_jobs
from flowstone.handlers.watch import Key
from flowstone.kube.client import Json, Kube

PATH = "/apis/batch/v1/jobs"
GONE: Json = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}


def event(version: int, backfill: str | None, kind: str = "MODIFIED", **metadata: object) -> Json:
    """What the server says of a Job that is over; of nobody's, if it is only to say how far it is."""
    labels = {} if backfill is None else {"flowstone.dev/backfill": backfill, "flowstone.dev/backfill-uid": backfill}
    named = {"name": f"{backfill}-1", "namespace": "ns", "labels": labels, "resourceVersion": str(version), **metadata}
    over = {"conditions": [{"type": "Complete", "status": "True"}]}
    return {"type": kind, "object": {"metadata": named, "status": over}}


@asynccontextmanager
async def server(*answers: Sequence[bytes] | int) -> AsyncIterator[tuple[Kube, list[str]]]:
    """Answers in turn, the last for ever: the chunks of a watch that then ends, or a status; and what was asked."""
    left, asked = list(answers), list[str]()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["resourceVersion"])
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, int):
            return web.json_response({"message": "no", "reason": "Forbidden"}, status=said)
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in said:
            await response.write(chunk)
        return response

    application = web.Application()
    application.router.add_get(PATH, answer)
    async with TestServer(application) as running:
        host = str(running.make_url("")).rstrip("/")
        async with client.ApiClient(client.Configuration(host=host)) as api:
            yield Kube(api, count=lambda verb, status: None), asked


def lines(*events: Json) -> bytes:
    """Events as they come over the wire."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


async def read(kube: Kube) -> list[Json]:
    """All events of one watch."""
    async with kube.watch(PATH, labels="a=b") as events:
        return [one async for one in events]


async def test_events_may_be_cut_anywhere_and_long() -> None:
    """Half lines, several in one chunk, and an object with the longest annotations there may be."""
    sent = [event(1, "a"), event(2, "b", annotations={"long": "x" * 262_144}), event(3, None, "BOOKMARK")]
    wire = lines(*sent)
    async with server([wire[:7], wire[7:200_000], wire[200_000:]]) as (kube, _):
        assert await read(kube) == sent


async def test_a_watch_that_may_not_be_is_refused() -> None:
    """A missing right is told as one."""
    async with server(403) as (kube, _):
        with pytest.raises(KubernetesRefused) as refused:
            await read(kube)
    assert refused.value.status == 403


@pytest.mark.parametrize("line", [b"{}\n", b"<html>\n", b'{"type": "ERROR", "object": {"code": 500}}\n'])
async def test_what_is_no_event_is_no_crash(line: bytes) -> None:
    """Something between here and the API server may say anything."""
    async with server([line]) as (kube, _):
        with pytest.raises(KubernetesUnavailable):
            await read(kube)


async def followed(
    kube: Kube, until: Callable[[list[Key], list[str | None]], bool], seen: SeenJobs | None = None
) -> tuple[list[Key], list[str | None]]:
    """The keys that were woken and the troubles that were told, until they are as wanted."""
    seen = seen or SeenJobs(clock=lambda: 0)
    woken, told, done = list[Key](), list[str | None](), asyncio.Event()

    def judge() -> None:
        if until(woken, told):
            done.set()

    def wake(key: Key, delay: float) -> None:
        assert delay == TOGETHER
        woken.append(key)
        judge()

    def tell(problem: str | None) -> None:
        told.append(problem)
        judge()

    task = asyncio.create_task(follow_jobs(kube, None, seen, wake, tell))
    async with asyncio.timeout(20):
        await done.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return woken, told


async def test_a_jobs_event_wakes_its_backfill_and_the_next_watch_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after a bookmark, which wakes nobody."""
    monkeypatch.setattr(job_watch, "PAUSE", 0.01)
    first = lines(event(5, "a"), event(6, "b", "DELETED"), event(9, None, "BOOKMARK"))
    async with server([first], [lines(event(10, "c"))]) as (kube, asked):
        woken, told = await followed(kube, lambda woken, _: len(woken) >= 3)
    assert woken[:3] == [Key("Backfill", "ns", name) for name in ("a", "b", "c")]
    assert asked[:2] == ["", "9"]
    assert set(told) == {None}


async def test_only_news_wakes_a_backfill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job that was created or has started needs nobody; one that fails, is being deleted, or is gone does."""
    monkeypatch.setattr(job_watch, "PAUSE", 0.01)
    created, started, failing = event(1, "a", "ADDED"), event(2, "b"), event(3, "c")
    created["object"].pop("status")
    started["object"]["status"] = {"active": 1, "ready": 1, "conditions": [{"type": "Complete", "status": "False"}]}
    failing["object"]["status"] = {"conditions": [{"type": "FailureTarget", "status": "True"}]}
    deleted = event(4, "d", deletionTimestamp="2026-12-01T12:00:00Z")
    deleted["object"].pop("status")
    gone = event(5, "e", "DELETED")
    async with server([lines(created, started, failing, deleted, gone)], [b""]) as (kube, _):
        woken, _ = await followed(kube, lambda woken, _: len(woken) >= 3)
    assert woken == [Key("Backfill", "ns", name) for name in ("c", "d", "e")]


async def test_what_is_seen_is_believed_while_the_watch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is open a Backfill's Jobs are known without a request; once it has ended they are not."""
    monkeypatch.setattr(job_watch, "PAUSE", 0.01)
    seen, told = SeenJobs(clock=lambda: 0), list[list[str] | None]()

    def look(woken: list[Key], _: list[str | None]) -> bool:
        seen.compared("ns", "a")
        known = seen.of("ns", "a")
        told.append(None if known is None else [job["metadata"]["name"] for job in known])
        return len(woken) >= 1

    async with server([lines(event(1, "a"))], 403) as (kube, _):
        await followed(kube, look, seen)
    assert told[-1] == ["a-1"]
    assert seen.of("ns", "a") is None


async def test_a_watch_from_too_long_ago_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forgets old versions; that is nobody's trouble."""
    monkeypatch.setattr(job_watch, "PAUSE", 0.01)
    async with server([lines(event(5, "a"))], [lines(GONE)], [lines(event(7, "b"))]) as (kube, asked):
        woken, told = await followed(kube, lambda woken, _: len(woken) >= 2)
    assert woken[:2] == [Key("Backfill", "ns", "a"), Key("Backfill", "ns", "b")]
    assert asked[:3] == ["", "5", ""]
    assert set(told) == {None}


async def test_what_stands_in_the_way_is_told_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right that is missing, and is given later, without any Job."""
    monkeypatch.setattr(job_watch, "PAUSE", 0.01)
    async with server(403, [b""]) as (kube, _):
        _, told = await followed(kube, lambda _, told: None in told)
    assert told[0] is not None
    assert "cannot watch Jobs" in told[0]
