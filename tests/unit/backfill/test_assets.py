"""What is said of an Asset that makes no sense, to a reader who looks at a Backfill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from flowstone.backfill.edges.assets import FRESH_SECONDS, REFUSED_SECONDS, Assets
from flowstone.errors import InvalidSpec
from flowstone.kube.client import Json, Kube
from flowstone.settings import OperatorSettings

CONTAINER: Json = {"name": "main", "image": "localhost/worker:1"}
DAYS: Json = {"name": "day", "type": "date"}


def resource(dimension: Json, pod: Json) -> Json:
    """An Asset as the API server would hand it out."""
    spec = {"partitionedBy": [dimension], "template": {"spec": {"containers": [CONTAINER], **pod}}}
    return {"metadata": {"name": "days", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec}


@asynccontextmanager
async def served(
    answer: Callable[[web.Request], Awaitable[web.Response]], now: Sequence[float]
) -> AsyncIterator[Assets]:
    """Assets of an API server that gives this answer to whatever it is asked; `now` is the time."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server:
        host = str(server.make_url("")).rstrip("/")
        async with client.ApiClient(client.Configuration(host=host)) as api:
            yield Assets(Kube(api, count=lambda verb, status: None), OperatorSettings(), clock=lambda: now[0])


@pytest.mark.parametrize(
    ("asset", "field"),
    [
        (resource({"name": "day", "type": "dat"}, {}), "Asset.spec.partitionedBy.0.type"),
        (
            resource(DAYS, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            "Asset.spec.template.spec.volumes[0].hostPath",
        ),
    ],
    ids=["no such type", "a folder of the node"],
)
async def test_a_field_of_an_asset_is_called_the_assets(asset: Json, field: str) -> None:
    """A Backfill has a `spec` too, so the message in its status says that the field is the Asset's."""
    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:1")) as nowhere:
        assets = Assets(Kube(nowhere, count=lambda verb, status: None), OperatorSettings())
        with pytest.raises(InvalidSpec) as refused:
            await assets.check(assets.read(asset))
    assert refused.value.field == field


async def test_a_refusal_is_believed_for_a_minute() -> None:
    """A refused template is tried out once a minute, each Asset by its own name; an edited one at once."""
    tried: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        tried.append((await request.json())["spec"]["template"]["spec"]["containers"][0]["image"])
        return web.json_response({"message": "no such field", "reason": "BadRequest"}, status=400)

    now = [0.0]
    async with served(refuse, now) as assets:

        async def told(name: str, image: str) -> str:
            asset = resource(DAYS, {"containers": [{**CONTAINER, "image": image}]})
            asset["metadata"]["name"] = name
            with pytest.raises(InvalidSpec, match="no such field") as refused:
                await assets.check(assets.read(asset))
            return str(refused.value.value)

        assert [await told(name, "old:1") for name in ("one", "two", "one")] == ["one", "two", "one"]
        await told("one", "new:1")
        assert tried == ["old:1", "new:1"]
        now[0] = REFUSED_SECONDS
        await told("one", "old:1")
        assert tried == ["old:1", "new:1", "old:1"]


async def test_an_asset_is_read_again_when_it_may_have_changed() -> None:
    """For two seconds what was read is right, unless the Asset's own event says otherwise: edited, broken or gone."""
    reads = 0
    there: list[Json] = [resource(DAYS, {})]

    async def give(_: web.Request) -> web.Response:
        nonlocal reads
        reads += 1
        return web.json_response(there[0]) if there else web.json_response({"reason": "NotFound"}, status=404)

    now = [0.0]
    async with served(give, now) as assets:

        async def nodes() -> Json | None:
            found = await assets.find("ns", "days")
            return None if found is None else found.spec.template["spec"].get("nodeSelector", {})

        assert [await nodes() for _ in range(3)] == [{}] * 3
        assert reads == 1
        assets.read(resource(DAYS, {"nodeSelector": {"disk": "fast"}}))
        assert (await nodes(), reads) == ({"disk": "fast"}, 1)
        now[0] = FRESH_SECONDS
        assert (await nodes(), reads) == ({}, 2)
        with pytest.raises(InvalidSpec):
            assets.read(resource({"name": "day", "type": "dat"}, {}))
        assert (await nodes(), reads) == ({}, 3)
        assets.forget("ns", "days")
        there.clear()
        assert (await nodes(), reads) == (None, 4)
