"""The examples are what a user would apply; each one runs here."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import ROOT, Kubectl, finished, program
from tests.e2e.test_tenants import as_tenant, credentials

pytestmark = pytest.mark.cluster

EXAMPLES = ROOT / "examples"


def demo(kubectl: Kubectl) -> subprocess.CompletedProcess[str]:
    """What `make demo` runs once FlowStone is installed."""
    path = f"{Path(program('kubectl')).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "KUBECONFIG": kubectl.config, "PATH": path}
    command = [sys.executable, str(EXAMPLES / "flights" / "demo.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def flown() -> dict[str, dict[str, tuple[int, int, int]]]:
    """By carrier and month, as the data file has it: flights, those cancelled, and miles."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")  # where `make install` keeps the file
    target = cache / "flowstone" / "flights.csv.zip"
    subprocess.run([sys.executable, str(EXAMPLES / "flights" / "fetch.py"), str(target)], check=True)
    flights, cancelled, miles = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with zipfile.ZipFile(target) as archive, archive.open(archive.namelist()[0]) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")):
            key = row["carrier"], f"2013-{int(row['month']):02}-01"
            flights[key] += 1
            cancelled[key] += row["dep_time"] == "NA"
            miles[key] += int(row["distance"])
    months = [f"2013-{month:02}-01" for month in range(1, 13)]
    carriers = {carrier for carrier, _ in flights}
    return {
        carrier: {
            month: (flights[carrier, month], cancelled[carrier, month], miles[carrier, month]) for month in months
        }
        for carrier in carriers
    }


def apply(kubectl: Kubectl, file: str, **instead: str) -> None:
    """Apply an example's file in the test's namespace, with other images."""
    text = (EXAMPLES / file).read_text("utf-8").replace("namespace: default", f"namespace: {kubectl.namespace}")
    for name, image in instead.items():
        text = text.replace(f"image: {name}", f"image: {image}")
    kubectl.out("apply", "-f", "-", given=text)


def test_the_demo_works_and_a_second_run_starts_nothing(operator: Kubectl, psql: Psql) -> None:
    """Every flight of 2013 exactly once in the result; run again, it finds everything done and makes no Job. A result
    that is not right makes it fail and say so."""
    done = demo(operator)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "336,776 flights on 365 days" in done.stdout
    uid = operator.within("analytics").get("backfill", "delays-2013")["metadata"]["uid"]
    batches = f"SELECT count(*), max(fence) FROM flowstone.batch WHERE backfill = '{uid}'"
    before = psql(batches)
    assert demo(operator).returncode == 0
    assert psql(batches) == before
    psql("UPDATE flights.daily_delay SET flights = flights + 1 WHERE flown_on = '2013-05-05' AND carrier = 'UA'")
    try:
        wrong = demo(operator)
        assert wrong.returncode == 1
        assert "the result has 336777 flights on 365 days" in wrong.stdout.replace("\n", " ")
    finally:
        psql("UPDATE flights.daily_delay SET flights = flights - 1 WHERE flown_on = '2013-05-05' AND carrier = 'UA'")


def test_each_airline_sees_its_own_months_alone(operator: Kubectl, psql: Psql) -> None:
    """The table holds what the data file says of 16 airlines by 12 months. UA's login, with no WHERE, is shown its 12
    rows; asked for DL's rows it finds none, and it can neither write such a row nor switch its protection off."""
    done = demo(operator)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = flown()
    columns = "month, flights, cancelled, miles FROM flights.airline_months"
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for tenant, month, *figures in psql(f"SELECT tenant_id, {columns}"):
        found.setdefault(tenant, {})[month] = tuple(map(int, figures))
    assert found == expected
    assert (len(found), sum(one[0] for months in found.values() for one in months.values())) == (16, 336_776)
    ua = credentials(operator.within("analytics"), "ua")
    wanted = [f"{month}|{'|'.join(map(str, figures))}" for month, figures in expected["UA"].items()]
    assert as_tenant(operator, ua, f"SELECT {columns} ORDER BY 1").splitlines() == wanted
    assert as_tenant(operator, ua, "SELECT count(*) FROM flights.airline_months WHERE tenant_id = 'DL'") == "0"
    row = "('DL', '2014-01-01', 1, 0, 1)"
    insert = f"INSERT INTO flights.airline_months (tenant_id, month, flights, cancelled, miles) VALUES {row}"
    assert "violates row-level security policy" in as_tenant(operator, ua, insert)
    disable = "ALTER TABLE flights.airline_months DISABLE ROW LEVEL SECURITY"
    assert "must be owner of table" in as_tenant(operator, ua, disable)


def test_a_plain_image_counts_by_its_exit_code(namespace: Kubectl, image: str) -> None:
    """Five letters, one of which fails: four done, and that one named."""
    apply(namespace, "plain-image/backfill.yaml", **{"busybox:1.37": image})
    status = finished(namespace, "letters")
    assert status["phase"] == "PartlyFailed"
    assert [one["partition"] for one in status["failures"]] == ["d"]
    assert status["delivery"] == "AtLeastOnce"


def test_three_dimensions_with_what_is_left_out(namespace: Kubectl, image: str) -> None:
    """3 regions x 2 carriers x 31 days = 186, minus 12 and 2 keys that are left out."""
    apply(namespace, "regions/backfill.yaml", **{"localhost/flowstone:dev": image})
    status = finished(namespace, "reports-january")
    assert (status["phase"], status["counts"]["succeeded"]) == ("Succeeded", 172)
