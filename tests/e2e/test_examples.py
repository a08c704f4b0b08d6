"""The examples are what a user would apply; each one runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Psql
from tests.e2e.kubectl import ROOT, Kubectl, finished, program

pytestmark = pytest.mark.cluster

EXAMPLES = ROOT / "examples"


def demo(kubectl: Kubectl) -> subprocess.CompletedProcess[str]:
    """What `make demo` runs once FlowStone is installed."""
    path = f"{Path(program('kubectl')).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "KUBECONFIG": kubectl.config, "PATH": path}
    command = [sys.executable, str(EXAMPLES / "flights" / "demo.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


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
