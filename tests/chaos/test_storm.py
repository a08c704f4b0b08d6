"""Everything at once: what must hold while operators, workers, a node, Postgres and the API server fail at random.

FLOWSTONE_CHAOS_PARTITIONS sets the size, FLOWSTONE_CHAOS_SEED the storm, FLOWSTONE_CHAOS_NODE_SECONDS how long the node
is lost: 100 is long enough for the control plane to evict its pods. In full, about ten minutes:

    FLOWSTONE_CHAOS_PARTITIONS=10000 FLOWSTONE_CHAOS_NODE_SECONDS=100 pytest -s tests/chaos/test_storm.py
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from tests.chaos.storm import Storm, Ways
from tests.chaos.watching import TimedJobs, Watcher, handed_out, over_cap
from tests.cluster.layout import API_PORT, API_URL, BRIDGE_ADDRESS
from tests.e2e.conftest import Psql, install
from tests.e2e.kubectl import Json, Kubectl, asset, backfill, finished, wait_for, watch_jobs
from tests.e2e.test_backfill import DAY, work
from tests.postgres.proxy import Proxy

pytestmark = pytest.mark.cluster

PARTITIONS = int(os.environ.get("FLOWSTONE_CHAOS_PARTITIONS", "200"))
SEED = int(os.environ.get("FLOWSTONE_CHAOS_SEED", "11"))
NODE_SECONDS = float(os.environ.get("FLOWSTONE_CHAOS_NODE_SECONDS", "8"))
BATCH = 10 if PARTITIONS < 1000 else 100
FIRST_CAP = 6
SECONDS_EACH = "0.05" if PARTITIONS < 1000 else "0.02"

_TABLE = """
    DROP SCHEMA IF EXISTS chaos CASCADE;
    CREATE SCHEMA chaos;
    CREATE TABLE chaos.made (partition text NOT NULL, fence bigint NOT NULL);
    GRANT USAGE ON SCHEMA chaos TO flowstone_namespace;
    GRANT INSERT ON chaos.made TO flowstone_namespace;
"""


def values(ways: Ways) -> Json:
    """The chart's values that lead operators and workers through the proxies."""
    environment = {
        "KUBERNETES_SERVICE_HOST": BRIDGE_ADDRESS,
        "KUBERNETES_SERVICE_PORT": str(ways.api.port),
        "PGHOST": BRIDGE_ADDRESS,
        "PGPORT": str(ways.operator_postgres.port),
    }
    return {
        "extraEnv": [{"name": name, "value": value} for name, value in environment.items()],
        "nodeLostSeconds": 30,
        "postgres": {"workerHost": BRIDGE_ADDRESS, "workerPort": ways.worker_postgres.port},
    }


@pytest.fixture
def database(operator: Kubectl) -> str:
    """The installer's connection string to the pod of Postgres itself."""
    secret = operator.get("secret", "flowstone-postgres-installer")["data"]
    password = base64.b64decode(secret["PGPASSWORD"]).decode()
    host = operator.get("pod", "flowstone-postgres-0")["status"]["podIP"]
    return make_conninfo("", host=host, port=5432, dbname="flowstone", user="postgres", password=password)


@pytest.fixture
def ways(cluster: Kubectl, operator: Kubectl, tmp_path: Path) -> Iterator[Ways]:
    """Proxies that operators and workers are led through; afterwards they take the direct way again."""
    if API_URL not in Path(cluster.config).read_text():
        pytest.skip("the proxies and the node's kubelet must be on this machine: `make cluster`")
    host = operator.get("pod", "flowstone-postgres-0")["status"]["podIP"]
    with (
        Proxy(API_PORT, host=BRIDGE_ADDRESS, listen=BRIDGE_ADDRESS) as api,
        Proxy(5432, host=host, listen=BRIDGE_ADDRESS) as operator_postgres,
        Proxy(5432, host=host, listen=BRIDGE_ADDRESS) as worker_postgres,
    ):
        made = Ways(api, operator_postgres, worker_postgres)
        (tmp_path / "values.yaml").write_text(json.dumps(values(made)))
        try:
            install(cluster, f"-f {tmp_path}/values.yaml")
            yield made
        finally:
            install(cluster)


def test_nothing_is_lost_or_done_twice_in_a_storm(
    cluster: Kubectl, operator: Kubectl, namespace: Kubectl, image: str, psql: Psql, database: str, ways: Ways
) -> None:
    """Each partition succeeds once and has its row once, the total is right at every look, no hand-out passes the cap.

    The worker's insert and its success are one transaction, so every snapshot shows as many of one as of the other.
    """
    psql(_TABLE)
    begin = time.time()
    last = date(2000, 1, 1) + timedelta(days=PARTITIONS - 1)
    container = work(image, "made", SECONDS_EACH=SECONDS_EACH)
    spec: Json = {
        "partitions": {"day": {"from": "2000-01-01", "through": str(last)}},
        "maxParallel": FIRST_CAP,
        "batchSize": BATCH,
        "retry": {"limit": 100, "backoffSeconds": 0},
    }
    namespace.apply(asset("rows", DAY, container, terminationGracePeriodSeconds=5), backfill("b", "rows", **spec))
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    pause = 5 if PARTITIONS < 1000 else 12
    storm = Storm(SEED, operator, namespace, ways, uid, NODE_SECONDS, pause, [(begin, FIRST_CAP)])
    jobs = TimedJobs()
    with Watcher(database, uid, PARTITIONS) as watcher, watch_jobs(namespace, jobs):
        with storm.raging():
            # Not by `psql`: kubectl reaches no pod while the node is lost.
            wait_for(
                lambda: watcher.succeeded,
                lambda found: found == PARTITIONS,
                seconds=150 + PARTITIONS * 0.08 + NODE_SECONDS,
                what="all partitions",
            )
        status = finished(namespace, "b", seconds=90)
    took = time.time() - begin
    print(f"\n{PARTITIONS} partitions, seed {SEED}, {took:.0f} s, {watcher.looks} looks, {len(jobs.all)} Jobs")
    print("done to it: " + ", ".join(f"{number} x {what}" for what, number in sorted(storm.done.items())))
    rows = psql("SELECT count(*), count(DISTINCT partition) FROM chaos.made")
    left = psql(f"SELECT count(*) FROM flowstone.batch WHERE backfill = '{uid}' AND state = 'open'")
    assert watcher.looks > 0
    assert watcher.wrong == []
    assert over_cap(handed_out(database, uid), storm.caps) == []
    assert over_cap(jobs.appeared, storm.caps) == []
    assert (status["phase"], status["counts"]["total"], status["counts"]["succeeded"]) == (
        "Succeeded",
        PARTITIONS,
        PARTITIONS,
    )
    assert rows == [[str(PARTITIONS), str(PARTITIONS)]]
    assert left == [["0"]]
    psql("DROP SCHEMA chaos CASCADE")
