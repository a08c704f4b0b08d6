"""Batches as Jobs of the real cluster, for the conformance suite."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import structlog
from kubernetes.aio import client, config
from psycopg import sql
from psycopg.conninfo import make_conninfo

from flowstone.api.parse import AssetResource, parse_backfill
from flowstone.backfill.edges.assets import Assets
from flowstone.backfill.edges.job_executor import JobExecutor
from flowstone.backfill.edges.namespace_login import NamespaceLogin
from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.backfill.edges.tenants import Tenants
from flowstone.backfill.secret import Endpoint
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.migrate import migrate
from flowstone.guard import Guards
from flowstone.kube.client import Kube
from flowstone.settings import OperatorSettings
from tests.conformance.world import CLUSTER, Json
from tests.e2e.conftest import SYSTEM
from tests.e2e.kubectl import Kubectl, backfill, program

POSTGRES = "flowstone-postgres"
"""The Service of the chart's PostgreSQL."""


class GivenAssets(Assets):
    """Assets that no cluster has, so that the operator there does not work on them too."""

    def __init__(self, kube: Kube, asset: AssetResource) -> None:
        super().__init__(kube, OperatorSettings())
        self._asset = asset

    async def find(self, namespace: str, name: str) -> AssetResource:
        return self._asset


class JobsWorld:
    """A namespace of the cluster."""

    seconds = 180.0

    def __init__(self, kubectl: Kubectl, image: str, ledger: Ledger, database: str) -> None:
        self.namespace = kubectl.namespace
        self.ledger = ledger
        self.pod: Json = {
            "volumes": [{"name": "code", "configMap": {"name": "code"}}],
            "terminationGracePeriodSeconds": 2,
        }
        self._kubectl = kubectl
        self._image = image
        self._endpoint = Endpoint(f"{POSTGRES}.{SYSTEM}", "5432", database)
        self._kube: Kube | None = None

    async def new_uid(self, name: str) -> str:
        self._kubectl.apply(backfill(name, "an-asset-that-is-not-there", keys=["a"]))
        uid: str = self._kubectl.get("backfill", name)["metadata"]["uid"]
        self._kube = self._kube or await self._connected()
        return uid

    async def _connected(self) -> Kube:
        configuration = client.Configuration()
        await config.load_kube_config(config_file=self._kubectl.config, client_configuration=configuration)
        return Kube(client.ApiClient(configuration), count=lambda verb, status: None)

    def executor(self, name: str, uid: str, asset: AssetResource) -> JobExecutor:
        assert self._kube is not None
        resource = {**backfill(name, name, keys=["a"]), "metadata": {"name": name, "namespace": self.namespace}}
        resource["metadata"]["uid"] = uid
        login = NamespaceLogin(self._kube, Logins(self.ledger.database), self._endpoint, lambda: uuid.uuid4().hex)
        return JobExecutor(
            kube=self._kube,
            assets=GivenAssets(self._kube, asset),
            login=login,
            tenants=Tenants(self._kube, self.ledger, Guards(()), cluster=CLUSTER, clock=time.monotonic, enabled=False),
            seen=SeenJobs(clock=time.monotonic),
            backfill=parse_backfill(resource),
            cluster=CLUSTER,
            now=lambda: datetime.now(UTC),
            node_lost=timedelta(seconds=300),
        )

    def function(self, name: str, **environment: str) -> Json:
        given = {"PYTHONPATH": "/code", **environment}
        env = [{"name": key, "value": value} for key, value in given.items()]
        mount = {"name": "code", "mountPath": "/code"}
        return self.program("flowstone", "work", f"work:{name}") | {"env": env, "volumeMounts": [mount]}

    def program(self, *words: str) -> Json:
        return {"name": "main", "image": self._image, "imagePullPolicy": "IfNotPresent", "command": list(words)}

    def alive(self, uid: str) -> set[str]:
        return {
            pod["metadata"]["labels"]["flowstone.dev/fence"]
            for pod in self._kubectl.list("pods", "-l", f"flowstone.dev/backfill-uid={uid}")
            if pod["status"].get("phase") == "Running"
        }

    def traces(self, uid: str) -> set[str]:
        found = self._kubectl.list("jobs", "-l", f"flowstone.dev/backfill-uid={uid}")
        return {job["metadata"]["name"] for job in found}

    def destroy(self, uid: str, run: str) -> None:
        self._kubectl.out("delete", "job", run, "--cascade=foreground", "--wait=true")

    async def close(self) -> None:
        """Close the connections to the API server."""
        if self._kube is not None:
            await self._kube.close()


@contextmanager
def jobs_world(kubectl: Kubectl, image: str) -> Iterator[JobsWorld]:
    """A world in a namespace, with a database of its own: the operator's ledger knows nothing of what runs here."""
    system, name = kubectl.within(SYSTEM), f"conformance_{uuid.uuid4().hex[:8]}"
    with _way_to_postgres(system) as (host, port):

        def conninfo(role: str, dbname: str) -> str:
            secret = system.get("secret", f"{POSTGRES}-{role}")["data"]
            user, password = (base64.b64decode(secret[key]).decode() for key in ("PGUSER", "PGPASSWORD"))
            return make_conninfo(host=host, port=port, dbname=dbname, user=user, password=password)

        with psycopg.connect(conninfo("installer", "postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                migrate(conninfo("installer", name), operator_password=None, log=structlog.get_logger())
                with Ledger.connect(conninfo("operator", name), cluster=CLUSTER) as ledger:
                    made = JobsWorld(kubectl, image, ledger, name)
                    yield made
                _drop_logins(conninfo("installer", name))
            finally:
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_logins(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as admin:
        for (role,) in admin.execute("SELECT role_name FROM flowstone.login_scope").fetchall():
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@contextmanager
def _way_to_postgres(system: Kubectl) -> Iterator[tuple[str, int]]:
    """Host and port of the cluster's PostgreSQL: its Service where this machine is on the cluster's network.

    Only elsewhere by `kubectl port-forward`, which ends for everyone when one of its connections is reset.
    """
    spec = system.get("service", POSTGRES)["spec"]
    host, port = spec["clusterIP"], int(spec["ports"][0]["port"])
    if _answers(host, port):
        yield host, port
    else:
        with _forwarded(system) as forwarded:
            yield "127.0.0.1", forwarded


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


@contextmanager
def _forwarded(system: Kubectl) -> Iterator[int]:
    """A port of this machine that leads to the PostgreSQL in the cluster."""
    command = [program("kubectl"), "--kubeconfig", system.config, "-n", SYSTEM, "port-forward", f"svc/{POSTGRES}"]
    with subprocess.Popen([*command, ":5432"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", said)
            assert found, f"kubectl port-forward said {said!r}"
            yield int(found[1])
        finally:
            process.terminate()
