"""`flowstone backfill ...` against a real cluster: what it says, what it changes, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.kubectl import Json, Kubectl, asset, backfill, conditions, finished, wait_for

pytestmark = pytest.mark.cluster

LETTERS: list[Json] = [{"name": "letter", "type": "string", "values": ["a", "b", "c"]}]


def flowstone(kubectl: Kubectl, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run `flowstone backfill` in a namespace, as a process of its own."""
    command = [str(Path(sys.executable).with_name("flowstone")), "backfill", *arguments]
    command += ["--kubeconfig", kubectl.config, "-n", kubectl.namespace]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=150, check=False)


def shell(image: str, script: str) -> Json:
    """A container that knows nothing of FlowStone."""
    return {"image": image, "command": ["sh", "-c", script]}


def document(*manifests: Json) -> str:
    """Manifests as one YAML text."""
    return yaml.safe_dump_all(manifests)


def test_run_applies_asset_and_backfill_and_waits(namespace: Kubectl, image: str) -> None:
    """One command from a file to success: exit code 0, a line per change in a pipe, and the summary."""
    text = document(asset("letters", LETTERS, shell(image, "true")), backfill("b", "letters"))
    done = flowstone(namespace, "run", "-f", "-", "--wait", "--timeout", "120", given=text)
    assert done.returncode == 0, done.stderr
    assert "b: Succeeded 100 %  3 succeeded" in done.stdout
    assert f"{namespace.namespace}/b  Succeeded" in done.stdout
    again = flowstone(namespace, "run", "-f", "-", "--wait", "-o", "name", given=text)
    assert (again.returncode, again.stdout) == (0, "backfill.flowstone.dev/b\n")


def test_failed_partitions_are_exit_code_1_and_have_logs(namespace: Kubectl, image: str) -> None:
    """What failed is named with its error, and `logs` prints what the program said about it."""
    script = 'test "$FLOWSTONE_PARTITION" != b || { echo "no data for b"; exit 3; }'
    text = document(
        asset("letters", LETTERS, shell(image, script)),
        backfill("b", "letters", batchSize=1, retry={"limit": 0}),
    )
    done = flowstone(namespace, "run", "-f", "-", "--wait", "--timeout", "120", given=text)
    assert done.returncode == 1, done.stderr
    assert "2 succeeded · 1 failed  of 3" in done.stdout
    assert flowstone(namespace, "logs", "b", "b").stdout == "no data for b\n"
    assert "PartlyFailed" in flowstone(namespace, "explain", "b").stdout
    gone = flowstone(namespace, "logs", "b", "z")
    assert (gone.returncode, "no such partition: the Backfill asks for a to c (3)" in gone.stderr) == (2, True)


def test_watch_gives_up_in_time_and_cancel_ends_it(namespace: Kubectl, image: str) -> None:
    """Exit code 6 while it goes on; `cancel --wait` is 0 when it is cancelled, and watching it then is 5."""
    namespace.apply(asset("letters", LETTERS, shell(image, "sleep 300")), backfill("b", "letters"))
    wait_for(lambda: namespace.status("b"), lambda status: status.get("activeBatches"), seconds=30, what="a batch")
    assert flowstone(namespace, "watch", "b", "--timeout", "1").returncode == 6
    done = flowstone(namespace, "cancel", "b", "--wait", "--timeout", "90")
    assert done.returncode == 0, done.stderr
    assert flowstone(namespace, "watch", "b").returncode == 5
    late = flowstone(namespace, "pause", "b")
    assert (late.returncode, "another Backfill" in late.stderr) == (2, True)
    assert finished(namespace, "b")["phase"] == "Cancelled"


def test_pause_and_resume(namespace: Kubectl, image: str) -> None:
    """Paused, nothing more is handed out; resumed, it goes on to its end."""
    namespace.apply(
        asset("letters", LETTERS, shell(image, "sleep 2")), backfill("b", "letters", maxParallel=1, batchSize=1)
    )
    wait_for(lambda: namespace.status("b"), lambda status: status.get("activeBatches"), seconds=30, what="a batch")
    assert flowstone(namespace, "pause", "b").stdout == "backfill.flowstone.dev/b\n"
    paused = wait_for(
        lambda: namespace.status("b"),
        lambda status: status.get("phase") == "Suspended" and not status["activeBatches"],
        seconds=60,
        what="Suspended",
    )
    assert paused["counts"]["queued"] >= 1
    assert flowstone(namespace, "resume", "b").returncode == 0
    assert finished(namespace, "b")["counts"]["succeeded"] == 3


def test_retry_runs_what_failed_once_more(namespace: Kubectl, image: str) -> None:
    """After the cause is mended, `retry --wait` turns a Backfill that failed in part into one that succeeded."""
    script = 'test "$FLOWSTONE_PARTITION" != b'
    wanted = backfill("b", "letters", batchSize=1, retry={"limit": 0})
    namespace.apply(asset("letters", LETTERS, shell(image, script)), wanted)
    assert finished(namespace, "b")["phase"] == "PartlyFailed"
    namespace.apply(asset("letters", LETTERS, shell(image, "true")))
    done = flowstone(namespace, "retry", "b", "--wait", "--timeout", "90")
    assert (done.returncode, "3 succeeded  of 3" in done.stdout) == (0, True), done.stdout + done.stderr


def test_watch_ends_when_the_resource_is_deleted(namespace: Kubectl, image: str) -> None:
    """Nobody waits for ever on something that is gone: it is said, with what to do, and is exit code 4."""
    namespace.apply(backfill("b", "nothing-there"))
    wait_for(lambda: conditions(namespace.status("b")), lambda found: "Ready" in found, seconds=30, what="a status")
    command = [str(Path(sys.executable).with_name("flowstone")), "backfill", "watch", "b"]
    command += ["--kubeconfig", namespace.config, "-n", namespace.namespace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "AssetNotFound" in process.stdout.readline()
        namespace.out("delete", "backfill", "b")
        assert process.wait(60) == 4
        assert f"Backfill {namespace.namespace}/b was deleted meanwhile" in process.stderr.read()


def test_status_in_every_form(namespace: Kubectl) -> None:
    """As table, names, YAML and JSON; the JSON is the resource itself."""
    namespace.apply(backfill("one", "nothing-there"), backfill("two", "nothing-there"))
    wait_for(lambda: conditions(namespace.status("two")), lambda found: "Ready" in found, seconds=30, what="a status")
    table = flowstone(namespace, "status").stdout.splitlines()
    assert [line.split()[1] for line in table] == ["NAME", "one", "two"]
    names = flowstone(namespace, "status", "-o", "name").stdout
    assert names == "backfill.flowstone.dev/one\nbackfill.flowstone.dev/two\n"
    listed = json.loads(flowstone(namespace, "status", "-o", "json").stdout)["items"]
    assert [one["metadata"]["name"] for one in listed] == ["one", "two"]
    assert yaml.safe_load(flowstone(namespace, "status", "two", "-o", "yaml").stdout)["kind"] == "Backfill"
    assert "create the Asset" in flowstone(namespace, "explain", "one").stdout.replace("\n", " ")


def test_what_is_not_there_is_refused(namespace: Kubectl) -> None:
    """Exit code 4 in the API server's own words."""
    missing = flowstone(namespace, "status", "nowhere")
    assert (missing.returncode, '"nowhere" not found' in missing.stderr) == (4, True)


@pytest.mark.parametrize(
    ("field", "words"),
    [({"maxParallel": 0}, "spec.maxParallel: Invalid value: 0"), ({"maxParalel": 3}, "spec.maxParalel: no such field")],
    ids=["a value", "an unknown field"],
)
def test_what_is_not_valid_is_refused_as_a_whole(namespace: Kubectl, image: str, field: Json, words: str) -> None:
    """Exit code 2 with the field that the server does not take; the Asset beside it is not applied either."""
    text = document(asset("letters", LETTERS, shell(image, "true")), backfill("b", "letters", **field))
    invalid = flowstone(namespace, "run", "-f", "-", given=text)
    assert (invalid.returncode, words in invalid.stderr) == (2, True), invalid.stderr
    assert namespace.list("assets") == []


def test_plan_reads_the_asset_from_the_cluster(namespace: Kubectl, image: str) -> None:
    """Without an Asset in the file, the one of the namespace is meant; nothing is created."""
    namespace.apply(asset("letters", LETTERS, shell(image, "true")))
    done = flowstone(namespace, "plan", "-f", "-", "-o", "json", given=document(backfill("b", "letters")))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"] == 3
    assert namespace.list("backfills") == []
