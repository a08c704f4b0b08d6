"""The Kubernetes API for people's commands: synchronous, plain dicts, FlowStone's errors."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes import client, config

from flowstone.errors import KubernetesRefused, KubernetesUnavailable
from flowstone.kube.encoding import APPLY, apply_body

Json = dict[str, Any]

FIELD_MANAGER = "flowstone-cli"
"""Owner of the fields that people set with these commands."""

PATIENCE = 30
"""Seconds until a request counts as not answered."""

DEFAULT_KUBECONFIG = "~/.kube/config"

WATCH_SECONDS = 240
"""Seconds after which a watch is begun anew, so that a dead connection is noticed."""

PAUSE_SECONDS = 1.0
"""Pause before a watch is begun anew, so that one that fails at once does not load the server."""

_MERGE = "application/merge-patch+json"
_GONE = 410


class Cluster:
    """One Kubernetes cluster, as the kubeconfig's user.

    Every method raises `KubernetesRefused` when the server says no, `KubernetesUnavailable` when it does not answer.
    """

    def __init__(self, api: client.ApiClient, namespace: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._api = api
        self._sleep = sleep
        self.namespace = namespace
        """The namespace that commands work in when none is named."""

    @classmethod
    def connect(
        cls, kubeconfig: str | None = None, *, context: str | None = None, namespace: str | None = None
    ) -> Cluster:
        """Connect as kubectl would: by a kubeconfig, or inside a pod by its service account."""
        configuration = client.Configuration()
        try:
            chosen = _load(configuration, kubeconfig, context)
        except (config.ConfigException, OSError) as error:
            raise KubernetesUnavailable(f"no cluster is configured ({error}); set KUBECONFIG") from error
        return cls(client.ApiClient(configuration), namespace or chosen)

    def get(self, path: str) -> Json:
        """Read one object."""
        return self._send("GET", path)

    def list(self, path: str, *, labels: str = "", fields: str = "") -> list[Json]:
        """Read all objects that match."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        return list(self._send("GET", path, query={k: v for k, v in query.items() if v}).get("items") or [])

    def apply(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False, manager: str = FIELD_MANAGER) -> Json:
        """Server-side apply; a field that somebody else owns is a conflict (409), not taken over."""
        query = {"fieldManager": manager} | ({"dryRun": "All"} if dry_run else {})
        return self._send("PATCH", path, query=query, body=apply_body(body), content=APPLY)

    def merge(self, path: str, change: Mapping[str, Any]) -> Json:
        """Change single fields (RFC 7396)."""
        return self._send("PATCH", path, query={"fieldManager": FIELD_MANAGER}, body=change, content=_MERGE)

    def text(self, path: str, **query: str) -> str:
        """Read something that is no object, such as a log."""
        response = self._request("GET", path, query, None, "application/json", PATIENCE)
        data = response.data
        _check(response.status, data, path)
        return data.decode("utf-8", "replace")

    def follow(self, collection: str, name: str, *, until: datetime | None = None) -> Iterator[Json]:
        """Yield an object as it is now and after each change; ends when it is deleted, though another has its name.

        Args:
            until: When the watch is begun anew, so that whoever gives up then is asked in time.
        """
        current, version = self._now(collection, name)
        if current is None:
            current = self.get(f"{collection}/{name}")  # says in the server's words that it is not there
        uid = current["metadata"]["uid"]
        while current is not None and current["metadata"]["uid"] == uid:
            yield current
            for event in self._watch(collection, name, version, _seconds(until)):
                if event["type"] == "DELETED":
                    return
                yield event["object"]
            self._sleep(PAUSE_SECONDS)
            current, version = self._now(collection, name)

    def find(self, collection: str, name: str) -> Json | None:
        """The object that has a name now; None when there is none."""
        return self._now(collection, name)[0]

    def _now(self, collection: str, name: str) -> tuple[Json | None, str]:
        """The object, and the version of the whole collection.

        Notes:
            A watch from the object's own version fails for good when that is older than what the server remembers,
            such as after a change of the CRD; so the version is that of a list.
        """
        found = self._send("GET", collection, query={"fieldSelector": f"metadata.name={name}"})
        items: list[Json] = found.get("items") or []
        return (items[0] if items else None), str(found["metadata"]["resourceVersion"])

    def _watch(self, collection: str, name: str, version: str, seconds: int) -> Iterator[Json]:
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        response = self._request("GET", collection, query, None, "application/json", seconds + PATIENCE)
        try:
            if response.status == _GONE:
                return
            if response.status >= 300:
                _check(response.status, response.data, collection)
            yield from _events(response)
        except urllib3.exceptions.HTTPError:
            return  # cut off: the caller reads the object again
        finally:
            response.release_conn()
            response.close()

    def _send(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | str | None = None,
        content: str = "application/json",
    ) -> Json:
        response = self._request(verb, path, query or {}, body, content, PATIENCE)
        data = response.data
        _check(response.status, data, path)
        decoded: Json = json.loads(data)
        return decoded

    def _request(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | str | None,
        content: str,
        seconds: float,
    ) -> urllib3.BaseHTTPResponse:
        prepared = self._api.param_serialize(
            verb,
            path,
            query_params=list(query.items()),
            header_params={"Content-Type": content, "Accept": "application/json"},
            body=dict(body) if isinstance(body, Mapping) else body,
            auth_settings=["BearerToken"],
        )
        try:
            answer: urllib3.BaseHTTPResponse = self._api.call_api(
                *prepared, _request_timeout=(PATIENCE, seconds)
            ).response
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            host = self._api.configuration.host
            raise KubernetesUnavailable(f"the cluster at {host} does not answer: {_root(error)}") from error
        return answer


def _seconds(until: datetime | None) -> int:
    """How long one watch lasts: a server takes whole seconds, and none means for ever."""
    left = WATCH_SECONDS if until is None else (until - datetime.now(UTC)).total_seconds()
    return max(1, min(WATCH_SECONDS, math.ceil(left)))


def _load(configuration: client.Configuration, kubeconfig: str | None, context: str | None) -> str:
    """Fill in address and credentials; the namespace that the context names."""
    file = kubeconfig or os.path.expanduser(DEFAULT_KUBECONFIG)
    if not (kubeconfig or context or os.path.exists(file)) and "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(configuration)
        return "default"
    config.load_kube_config(file, context=context, client_configuration=configuration)
    contexts, active = config.list_kube_config_contexts(file)
    used = next((one for one in contexts if one["name"] == context), active)
    return str(used["context"].get("namespace") or "default")


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[Json]:
    pending = b""
    for chunk in response.stream(65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in filter(None, lines):
            event = json.loads(line)
            if event["type"] == "ERROR":
                return  # too old a version, most often: the caller reads the object again
            yield event


def _check(status: int, data: bytes, path: str) -> None:
    if status < 300:
        return
    try:
        answer = json.loads(data)
    except ValueError:
        answer = {}
    message = str(answer.get("message") or data[:300].decode("utf-8", "replace") or path)
    if status == 500 and (faults := misfit(message)):
        raise KubernetesRefused(422, "Invalid", faults)
    if status == 429 or status >= 500:
        raise KubernetesUnavailable(f"the API server answered {status}: {message}")
    raise KubernetesRefused(status, str(answer.get("reason") or status), message + _where(status, path))


_MISFIT = re.compile(
    r"failed to create typed patch object \(.*?([^/ ]+); .*?Kind=(\w+)\): (?:errors:\n)?(.*)", re.DOTALL
)
_PLAINLY = (
    (
        re.compile("field not declared in schema"),
        "no such field: remove it, correct its spelling, or upgrade the operator",
    ),
    (re.compile(r"&[\w.]*\{(?:Value:)?(.*)\}"), r"\1"),  # a value as Go prints it
)


def misfit(message: str) -> str:
    """What is wrong with a manifest that server-side apply did not even begin with; "" for any other message.

    Notes:
        The API server calls this an internal error (500), though it is the manifest's: an unknown field, or a value
        of the wrong type.
    """
    found = _MISFIT.match(message)
    if found is None:
        return ""
    return f"{found[2]} {found[1]}: " + "; ".join(map(_plainly, found[3].splitlines()))


def _plainly(fault: str) -> str:
    for words, ours in _PLAINLY:
        fault = words.sub(ours, fault)
    return fault.strip().removeprefix(".")


_OURS = re.compile(r"/apis/flowstone\.dev/[^/]+/namespaces/([^/]+)/")


def _where(status: int, path: str) -> str:
    """Where one of our objects was looked for in vain, as most often it is in another namespace."""
    namespace = _OURS.match(path) if status == 404 else None
    return f"; looked in namespace {namespace[1]}, -n (--namespace) names another" if namespace else ""


def _root(error: BaseException) -> str:
    """The innermost cause in words; the outer ones only repeat the address."""
    reason = getattr(error, "reason", None)
    return _root(reason) if isinstance(reason, BaseException) else str(error)
