"""Tenants on the real cluster: own login, own Secret, own rows; guards at planning; loss by mistake loses nothing."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import Json, Kubectl, asset, backfill, conditions, finished, wait_for
from tests.e2e.test_backfill import DAY, work

pytestmark = pytest.mark.cluster

BY_AIRLINE: list[Json] = [{"name": "airline", "type": "tenant"}, *DAY]
TWO_DAYS = {"day": {"from": "2025-01-01", "through": "2025-01-02"}}


def tenant(name: str, *namespaces: str, **spec: object) -> Json:
    """A Tenant."""
    return {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"namespaces": list(namespaces), **spec},
    }


@pytest.fixture
def names(operator: Kubectl) -> Iterator[tuple[str, str]]:
    """Two tenant names that nobody has used; the resources are deleted afterwards."""
    stem = secrets.token_hex(3)
    pair = (f"ua-{stem}", f"dl-{stem}")
    yield pair
    operator.run("delete", "tenants", *pair, "--ignore-not-found", "--wait=false")


def ready(operator: Kubectl, name: str) -> Json:
    """Wait until a Tenant is ready; returns its status."""
    status: Json = wait_for(
        lambda: operator.get("tenant", name).get("status") or {},
        lambda status: conditions(status).get("Ready", {}).get("status") == "True",
        seconds=60,
        what=f"Tenant {name} ready",
    )
    return status


def credentials(namespace: Kubectl, name: str) -> dict[str, str]:
    """The content of a tenant's Secret."""
    data = namespace.get("secret", f"flowstone-tenant-{name}").get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def as_tenant(operator: Kubectl, login: dict[str, str], query: str) -> str:
    """What a tenant's own login gets to see."""
    script = f'PGPASSWORD="$1" exec psql -h 127.0.0.1 -U {login["PGUSER"]} -d {login["PGDATABASE"]} -AtX -c "$2"'
    command = ["sh", "-c", script, "psql", login["PGPASSWORD"], query]
    done = operator.run("exec", "flowstone-postgres-0", "-c", "postgres", "--", *command)
    return done.stdout.strip() or done.stderr.strip()


def test_each_tenant_computes_and_sees_its_own_rows(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str], psql: Psql
) -> None:
    """One Backfill over all Tenants of the namespace: a Job has one tenant's login, which sees its own rows alone."""
    for name in names:
        namespace.apply(tenant(name, namespace.namespace))
    for name in names:
        ready(operator, name)
    namespace.apply(
        asset("foreign", BY_AIRLINE, work(image, "foreign")),
        backfill("b", "foreign", partitions=TWO_DAYS, retry={"limit": 0}),
    )
    status = finished(namespace, "b")
    assert (status["phase"], status["counts"]["succeeded"]) == ("Succeeded", 4), status["failures"]
    uid = namespace.get("backfill", "b")["metadata"]["uid"]
    scopes = psql(
        "SELECT split_part(scope, '/', 3), split_part(partition, '|', 1), count(*) FROM flowstone.materialization "
        f"WHERE backfill = '{uid}' GROUP BY 1, 2 ORDER BY 1"
    )
    assert scopes == [[name, name, "2"] for name in sorted(names)]
    for name in names:
        query = "SELECT DISTINCT split_part(scope, '/', 3) FROM flowstone.materialization"
        assert as_tenant(operator, credentials(namespace, name), query) == name


def test_a_tenant_with_a_database_of_its_own_works_there_alone(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str], psql: Psql
) -> None:
    """Its rows are in its database once each and nowhere else, the counts are right, and its login knows no other."""
    name, _ = names
    namespace.apply(tenant(name, namespace.namespace, isolation="Database"))
    ready(operator, name)
    login = credentials(namespace, name)
    assert as_tenant(operator, login, "CREATE TABLE result (partition text)") == "CREATE TABLE"
    days = {"day": {"from": "2025-01-01", "through": "2025-01-10"}}
    namespace.apply(
        asset("own", DAY, work(image, "kept")),
        backfill("b", "own", tenant=name, partitions=days, batchSize=4, retry={"limit": 0}),
    )
    status = finished(namespace, "b")
    assert (status["phase"], status["counts"]["succeeded"]) == ("Succeeded", 10), status["failures"]
    assert status["delivery"] == "ExactlyOnce"
    keys = [f"2025-01-{day:02}" for day in range(1, 11)]
    assert as_tenant(operator, login, "SELECT partition FROM result ORDER BY 1").split() == keys
    assert psql("SELECT count(*) FROM pg_class WHERE relname = 'result'") == [["0"]]
    [[ledger]] = psql("SELECT current_database()")
    assert "permission denied for database" in as_tenant(operator, {**login, "PGDATABASE": ledger}, "SELECT 1")
    change = operator.run("patch", "tenant", name, "--type=merge", "-p", '{"spec": {"isolation": "Shared"}}')
    assert "isolation cannot be changed to or from Database" in change.stderr


def test_a_tier_that_is_too_low_starts_no_job(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str]
) -> None:
    """`requiredTier: enterprise` with a basic tenant: not one Job, and the Backfill says why for that tenant; the other
    tenant's partitions are computed."""
    low, high = names
    namespace.apply(tenant(low, namespace.namespace), tenant(high, namespace.namespace, tier="enterprise"))
    ready(operator, low)
    ready(operator, high)
    manifest = asset("dear", BY_AIRLINE, work(image, "nothing"))
    manifest["spec"]["requiredTier"] = "enterprise"
    namespace.apply(manifest, backfill("low", "dear", partitions={"airline": {"values": [low]}, **TWO_DAYS}))
    status = finished(namespace, "low")
    assert (status["phase"], status["counts"]["skipped"]) == ("Failed", 2)
    assert f"tenant {low} (tier basic, required enterprise)" in conditions(status)["Ready"]["message"]
    assert not namespace.list("jobs")
    namespace.apply(backfill("both", "dear", partitions=TWO_DAYS))
    both = finished(namespace, "both")
    assert (both["phase"], both["counts"]["succeeded"], both["counts"]["skipped"]) == ("PartlyFailed", 2, 2)


def test_a_namespace_cannot_use_the_tenant_of_another(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str]
) -> None:
    """Neither by `tenant:` nor by naming its Secret in a template; the Secret is not in the namespace either."""
    mine, theirs = names
    namespace.apply(tenant(mine, namespace.namespace), tenant(theirs, "flowstone-system"))
    ready(operator, theirs)
    namespace.apply(
        asset("days", DAY, work(image, "nothing")), backfill("b", "days", tenant=theirs, keys=["2025-01-01"])
    )
    status = finished(namespace, "b")
    assert status["counts"]["skipped"] == 1
    assert "its namespaces do not include" in conditions(status)["Ready"]["message"]
    assert not namespace.list("jobs")
    assert credentials(namespace, theirs) == {}
    stealing = work(image, "nothing") | {"envFrom": [{"secretRef": {"name": f"flowstone-tenant-{mine}"}}]}
    namespace.apply(asset("thief", DAY, stealing), backfill("t", "thief", keys=["2025-01-01"]))
    wait_for(
        lambda: conditions(namespace.status("t")).get("Stalled", {}),
        lambda found: found.get("reason") == "InvalidSpec" and "flowstone-tenant-" in found["message"],
        seconds=20,
        what="the template is refused",
    )


@pytest.mark.alone
def test_row_security_switched_off_by_hand_is_noticed_and_repaired(
    namespace: Kubectl, operator: Kubectl, names: tuple[str, str], psql: Psql
) -> None:
    """Within two resyncs the Tenant tells of it and the table is protected again."""
    name = names[0]
    namespace.apply(tenant(name, namespace.namespace))
    ready(operator, name)
    psql("ALTER TABLE flowstone.materialization DISABLE ROW LEVEL SECURITY")
    wait_for(
        lambda: conditions(operator.get("tenant", name).get("status") or {}).get("IsolationVerified", {}),
        lambda found: found.get("status") == "False" and "materialization" in found["message"],
        seconds=150,
        what="IsolationVerified=False",
    )
    query = "SELECT relrowsecurity FROM pg_class WHERE oid = 'flowstone.materialization'::regclass"
    wait_for(lambda: psql(query), lambda rows: rows == [["t"]], seconds=30, what="row security is on again")
    wait_for(
        lambda: conditions(operator.get("tenant", name).get("status") or {}).get("IsolationVerified", {}),
        lambda found: found.get("status") == "True",
        seconds=150,
        what="IsolationVerified=True",
    )


@pytest.mark.alone
def test_a_table_that_stays_open_suspends_handing_out(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str], psql: Psql
) -> None:
    """Row security is off on a superuser's table, which the operator cannot repair: no Job until somebody has."""
    name, table = names[0], f"public.{names[0].replace('-', '_')}_open"
    psql(f"CREATE TABLE {table} (tenant_id text NOT NULL DEFAULT flowstone.tenant_id(), n int)")
    try:
        psql(f"GRANT SELECT ON {table} TO flowstone_tenant")
        namespace.apply(tenant(name, namespace.namespace), asset("days", DAY, work(image, "nothing")))
        wait_for(
            lambda: conditions(operator.get("tenant", name).get("status") or {}).get("IsolationVerified", {}),
            lambda found: found.get("status") == "False" and table in found["message"],
            seconds=150,
            what="IsolationVerified=False",
        )
        namespace.apply(backfill("b", "days", tenant=name, keys=["2025-01-01"]))
        wait_for(
            lambda: conditions(namespace.status("b")).get("Blocked", {}),
            lambda found: found.get("reason") == "TenantNotReady" and table in found["message"],
            seconds=30,
            what="handing out is suspended",
        )
        assert not namespace.list("jobs")
    finally:
        psql(f"DROP TABLE {table}")
    assert finished(namespace, "b", seconds=150)["phase"] == "Succeeded"


def test_deleting_a_tenant_by_mistake_loses_nothing(
    namespace: Kubectl, operator: Kubectl, image: str, names: tuple[str, str]
) -> None:
    """Its login stops and its Secret goes; the same id applied again finds its rows with fresh credentials."""
    name = names[0]
    namespace.apply(tenant(name, namespace.namespace))
    ready(operator, name)
    namespace.apply(asset("days", DAY, work(image, "nothing")), backfill("b", "days", tenant=name, keys=["2025-01-01"]))
    assert finished(namespace, "b")["phase"] == "Succeeded"
    before = credentials(namespace, name)
    operator.out("delete", "tenant", name, "--timeout=60s")
    assert credentials(namespace, name) == {}
    assert "FATAL" in as_tenant(operator, before, "SELECT 1")
    namespace.apply(tenant(name, namespace.namespace))
    ready(operator, name)
    after = credentials(namespace, name)
    assert after["PGPASSWORD"] != before["PGPASSWORD"]
    assert as_tenant(operator, after, "SELECT count(*) FROM flowstone.materialization") == "1"
