"""A thin, raw client: `kubernetes.aio`'s connection and credentials, plain dicts, FlowStone's errors.

Typed models would cost six times the CPU and twenty times the memory on LIST, so only the transport of the
library is used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any, Protocol

import aiohttp
from kubernetes.aio import client, config

from flowstone.errors import KubernetesRefused, KubernetesUnavailable
from flowstone.kube.encoding import APPLY, apply_body
from flowstone.kube.paths import FIELD_MANAGER

Json = dict[str, Any]

PAGE = 500
"""Objects a page of a LIST holds; a page is the most that is in memory twice."""

_JSON = "application/json"

WATCH_SECONDS = 270
"""After this the server ends a watch, and whoever follows begins another."""

SILENCE_SECONDS = 150.0
"""A watch that says nothing for so long is cut off: the server sends a bookmark about every minute."""


class RequestCounter(Protocol):
    """Told of each request: its verb and the HTTP status (0 = no answer)."""

    def __call__(self, verb: str, status: int) -> None:
        """Count one request."""


class Kube:
    """The Kubernetes API as plain dicts.

    Every method raises `KubernetesRefused` when the server says no and `KubernetesUnavailable` when it does
    not answer within `patience` seconds, or asks to come back later.
    """

    def __init__(self, api: client.ApiClient, *, patience: float = 30, count: RequestCounter) -> None:
        self._api = api
        self._patience = patience
        self._count = count

    @classmethod
    async def connect(cls, *, patience: float = 30, count: RequestCounter) -> Kube:
        """Connect with the pod's service account, or with the kubeconfig of this machine."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration), patience=patience, count=count)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get(self, path: str) -> Json | None:
        """Read one object; None when it is not there."""
        try:
            return await self._request("GET", path)
        except KubernetesRefused as refused:
            if refused.status == 404:
                return None
            raise

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Read all objects that match, page by page, consistently (no cache)."""
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields, "continue": ""}
        items: list[Json] = []
        while True:
            page = await self._request("GET", path, query={k: v for k, v in query.items() if v})
            items.extend(page.get("items") or [])
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return items

    @asynccontextmanager
    async def watch(self, path: str, *, labels: str = "", since: str = "") -> AsyncIterator[AsyncIterator[Json]]:
        """Follow what happens to objects, until the server ends it after some minutes.

        An event has `type` (ADDED, MODIFIED, DELETED, or BOOKMARK, whose object has hardly anything) and `object`.

        Args:
            path: Of a collection.
            since: A resourceVersion that was seen; "" begins with all objects that there are.
        """
        query = {"watch": "1", "labelSelector": labels, "timeoutSeconds": str(WATCH_SECONDS)}
        query |= {"allowWatchBookmarks": "true", "resourceVersion": since}
        try:
            async with asyncio.timeout(self._patience):
                response = await self._call("GET", path, None, query)
                self._count("GET", response.status)
                if response.status >= 300:
                    raise _error(response.status, _decode(await response.read()), f"GET {path}")
            with closing(response.response) as stream:
                yield _events(stream, path)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubernetesUnavailable(f"the API server broke off the watch of {path}: {error!r}") from error

    async def create(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Create an object; 409 when the name is taken. A trial run also refuses fields that the server would drop."""
        trial = {"dryRun": "All", "fieldValidation": "Strict"}
        query = {"fieldManager": FIELD_MANAGER} | (trial if dry_run else {})
        return await self._request("POST", path, body=body, query=query)

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = FIELD_MANAGER) -> Json:
        """Server-side apply; with a resourceVersion in `body` a stale writer gets 409."""
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, body=apply_body(body), query=query, content=APPLY)

    async def delete(
        self, path: str, *, uid: str | None = None, propagation: str = "Background", grace: int | None = None
    ) -> None:
        """Delete an object (only that `uid`); one that is not there is fine."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._request("DELETE", path, body=body)
        except KubernetesRefused as refused:
            if refused.status not in (404, 409):  # 409: another uid has taken the name
                raise

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        body: Mapping[str, Any] | str | None = None,
        query: Mapping[str, str] | None = None,
        content: str = _JSON,
    ) -> Json:
        status = 0
        try:
            status, payload = await asyncio.wait_for(self._send(verb, path, body, query or {}, content), self._patience)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubernetesUnavailable(f"the API server did not answer {verb} {path}: {error!r}") from error
        finally:
            self._count(verb, status)
        if status < 300:
            return payload
        raise _error(status, payload, f"{verb} {path}")

    async def _send(
        self, verb: str, path: str, body: Mapping[str, Any] | str | None, query: Mapping[str, str], content: str
    ) -> tuple[int, Json]:
        response = await self._call(verb, path, body, query, content=content)
        return response.status, _decode(await response.read())

    async def _call(
        self,
        verb: str,
        path: str,
        body: Mapping[str, Any] | str | None,
        query: Mapping[str, str],
        *,
        content: str = _JSON,
    ) -> Any:
        prepared = await self._api.param_serialize(
            verb,
            path,
            query_params=list(query.items()),
            header_params={"Content-Type": content, "Accept": _JSON, "Accept-Encoding": "identity"},
            body=dict(body) if isinstance(body, Mapping) else body,
            auth_settings=["BearerToken"],
        )
        return await self._api.call_api(*prepared)


async def _events(stream: aiohttp.ClientResponse, path: str) -> AsyncIterator[Json]:
    async for line in _lines(stream):
        event = _decode(line)
        if event.get("type") == "ERROR" or "object" not in event:
            said = event.get("object", event)
            raise _error(int(said.get("code") or 500), said, f"the watch of {path}")
        yield event


async def _lines(stream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines of any length: `readline` has a limit, and an object's annotations may be longer."""
    rest = b""
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            chunk = await stream.content.readany()
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _decode(data: bytes) -> Json:
    try:
        decoded = json.loads(data) if data else {}
    except ValueError:
        return {"message": data[:500].decode("utf-8", "replace")}
    return decoded if isinstance(decoded, dict) else {"message": str(decoded)[:500]}


def _error(status: int, payload: Json, request: str) -> KubernetesRefused | KubernetesUnavailable:
    message = str(payload.get("message") or request)
    if status == 429 or status >= 500:
        return KubernetesUnavailable(f"the API server answered {status} to {request}: {message}")
    return KubernetesRefused(status, str(payload.get("reason") or status), message)
