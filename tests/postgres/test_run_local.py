"""`flowstone run -f backfill.yaml --local`, as people start it: real processes, a real PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowstone.db.ledger import Ledger
from flowstone.db.tenants import TenantRegistry
from tests.conformance.processes_world import command_of, processes_of
from tests.postgres.conftest import Place

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
FLOWSTONE = [sys.executable, "-c", "from flowstone.cli.entry import main; main()"]

Json = dict[str, Any]
Command = subprocess.Popen[str]


class Desk:
    """Somebody at a laptop: a file, a ledger, and a folder for runs."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.folder = folder
        self.file = folder / "backfill.yaml"
        self.uids: set[str] = set()

    def write(self, function: str, keys: Iterable[str] = "abc", **spec: Any) -> None:
        """Write the file: an Asset that runs a function, and a Backfill over some letters."""
        container = {"name": "main", "image": "example/none:1", "command": ["flowstone", "work"]}
        container["args"] = [f"tests.postgres.local_code:{function}"]
        asset = {
            "apiVersion": "flowstone.dev/v1alpha1",
            "kind": "Asset",
            "metadata": {"name": "letters"},
            "spec": {
                "partitionedBy": [{"name": "letter", "type": "string"}],
                "template": {"spec": {"containers": [container], "terminationGracePeriodSeconds": 2}},
            },
        }
        backfill = {
            "apiVersion": "flowstone.dev/v1alpha1",
            "kind": "Backfill",
            "metadata": {"name": "b"},
            "spec": {"asset": "letters", "keys": list(keys), "batchSize": 1, **spec},
        }
        self.file.write_text(yaml.safe_dump_all([asset, backfill]))

    def command(self, *more: str) -> list[str]:
        """The command line."""
        where = ["--database", self.place.operator, "--folder", str(self.folder / "home")]
        return [*FLOWSTONE, "run", "-f", str(self.file), "--local", *where, *more]

    def environment(self, **more: str) -> dict[str, str]:
        """The environment, in which modules are found as here."""
        path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry)])
        return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **more}

    def run(self, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*more),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @contextmanager
    def running(self, **environment: str) -> Iterator[Command]:
        """Start it, and leave nothing of it behind afterwards."""
        with subprocess.Popen(
            self.command(), env=self.environment(**environment), stdout=-1, stderr=-1, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def uid(self) -> str:
        """The uid of the newest backfill; "" before there is one."""
        rows = self.place.all("SELECT uid::text FROM flowstone.backfill ORDER BY seq DESC LIMIT 1")
        return str(rows[0][0]) if rows else ""

    def alive(self) -> set[str]:
        """Fences of the newest backfill that have a process."""
        uid = self.uid()
        self.uids.add(uid)
        return {fence for pid, fence in processes_of(uid) if "supervisor.py" not in command_of(pid)} if uid else set()

    def until_alive(self, number: int, command: Command) -> None:
        """Wait until so many batches of the newest backfill have a process."""
        deadline = time.monotonic() + 60
        while len(self.alive()) != number:
            assert command.poll() is None, command.communicate()
            assert time.monotonic() < deadline, f"not {number} alive in 60 s"
            time.sleep(0.05)

    def states(self) -> dict[str, str]:
        """The state of each partition of the newest backfill."""
        query = "SELECT partition, state FROM flowstone.materialization WHERE backfill = %s ORDER BY ordinal"
        return dict(self.place.all(query, self.uid()))

    def batches(self) -> list[str]:
        """How each batch ended, of all backfills."""
        query = "SELECT coalesce(outcome, 'open') FROM flowstone.batch ORDER BY fence"
        return [outcome for (outcome,) in self.place.all(query)]


@pytest.fixture
def desk(place: Place, tmp_path: Path) -> Iterator[Desk]:
    """A desk; its processes are ended afterwards."""
    made = Desk(place, tmp_path)
    yield made
    for uid in made.uids - {""}:
        for pid, _ in processes_of(uid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_file_is_worked_off_and_a_second_start_has_nothing_to_do(desk: Desk) -> None:
    """Exit code 0 and the status as in a cluster; the same command again starts nothing and says the same."""
    desk.write("nothing")
    first = desk.run("-o", "json")
    assert first.returncode == 0, first.stderr
    resource = json.loads(first.stdout)
    assert (resource["metadata"]["namespace"], resource["metadata"]["name"]) == ("default", "b")
    assert resource["status"]["phase"] == "Succeeded"
    assert (resource["status"]["counts"]["succeeded"], resource["status"]["delivery"]) == (3, "ExactlyOnce")
    assert "image example/none:1 is not used" in first.stderr
    second = desk.run("-o", "json")
    assert (second.returncode, json.loads(second.stdout)["status"]["counts"]) == (0, resource["status"]["counts"])
    assert desk.batches() == ["succeeded"] * 3


def test_a_failure_is_exit_code_1_and_its_log_is_named(desk: Desk) -> None:
    """One of three raises: the failure stands in the table, and the log with the output of its run is named."""
    desk.write("picky", retry={"limit": 0})
    done = desk.run()
    assert done.returncode == 1
    assert "ValueError: no data for b" in done.stdout
    log = Path(done.stderr.rpartition("log of ")[2].partition(": ")[2].strip())
    assert "looking for data" in log.read_text()
    assert desk.states() == {"a": "succeeded", "b": "failed", "c": "succeeded"}


def test_ctrl_c_lets_what_runs_end(desk: Desk) -> None:
    """The first SIGINT starts nothing more and waits; exit code 130; the same command does the rest."""
    desk.write("slow", maxParallel=1)
    with desk.running(SECONDS_EACH="3") as command:
        desk.until_alive(1, command)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert "Ctrl-C again stops it" in err
    assert "The same command goes on from here." in err
    assert "Suspended" in out
    assert desk.states() == {"a": "succeeded", "b": "queued", "c": "queued"}
    assert desk.run(SECONDS_EACH="0").returncode == 0
    assert set(desk.states().values()) == {"succeeded"}


def test_ctrl_c_twice_stops_what_runs(desk: Desk) -> None:
    """The second SIGINT ends the processes; what they had not done is queued again, and nobody is charged."""
    desk.write("slow", maxParallel=2)
    with desk.running() as command:
        desk.until_alive(2, command)
        command.send_signal(signal.SIGINT)
        time.sleep(0.5)  # two signals of one kind that come together are one
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert (desk.alive(), set(desk.states().values())) == (set(), {"queued"})
    assert desk.place.all("SELECT 1 FROM flowstone.attempt") == []


def test_a_killed_start_is_taken_up_by_the_next(desk: Desk) -> None:
    """SIGKILL in the middle: the processes go on, the next start finds them under their fences and adds none."""
    desk.write("slow", "ab", maxParallel=2)
    with desk.running(SECONDS_EACH="6") as command:
        desk.until_alive(2, command)
        fences = desk.alive()
        command.kill()
        command.communicate()
    assert desk.alive() == fences
    begin = time.monotonic()
    done = desk.run(SECONDS_EACH="600")
    assert (done.returncode, desk.batches()) == (0, ["succeeded", "succeeded"]), done.stderr
    assert time.monotonic() - begin < 60  # the new start would have waited for 600 s per partition


def test_two_starts_do_not_work_on_the_same(desk: Desk) -> None:
    """A second start while the first runs is refused with the first one's pid, as something to try later."""
    desk.write("slow", "a")
    with desk.running() as command:
        desk.until_alive(1, command)
        second = desk.run()
        assert second.returncode == 3
        assert f"process {command.pid} of this machine works on this backfill" in second.stderr


def test_another_set_in_the_file_is_another_backfill(desk: Desk) -> None:
    """Edited keys: what the file asked for before is closed, its processes end, and the new set is worked off."""
    desk.write("slow", "abc", maxParallel=1)
    with desk.running() as command:
        desk.until_alive(1, command)
        old = desk.uid()
        command.kill()
        command.communicate()
    desk.write("nothing", "cd")
    done = desk.run()
    assert done.returncode == 0, done.stderr
    assert "The file asks for something else than before" in done.stderr
    assert desk.states() == {"c": "succeeded", "d": "succeeded"}
    assert processes_of(old) == []
    states = desk.place.all("SELECT DISTINCT state FROM flowstone.materialization WHERE backfill = %s", old)
    assert states == [("cancelled",)]


def test_live_fields_may_be_edited_between_two_starts(desk: Desk) -> None:
    """Another maxParallel in the file is the same backfill."""
    desk.write("nothing", "ab", maxParallel=1)
    desk.run()
    before = desk.uid()
    desk.write("nothing", "ab", maxParallel=7)
    assert desk.run().returncode == 0
    assert desk.uid() == before


def test_cancel_in_the_file_cancels(desk: Desk) -> None:
    """`cancel: true` ends what an earlier start left running, with the exit code of a cancelled Backfill."""
    desk.write("slow", maxParallel=1)
    with desk.running() as command:
        desk.until_alive(1, command)
        command.kill()
        command.communicate()
    desk.write("slow", maxParallel=1, cancel=True)
    assert desk.run().returncode == 5
    assert (desk.alive(), set(desk.states().values())) == (set(), {"cancelled"})


def test_no_secret_is_in_any_command_line(desk: Desk) -> None:
    """The password of the login is in a private file and in the worker's environment, and in no argument."""
    desk.write("slow", "a")
    with desk.running() as command:
        desk.until_alive(1, command)
        (password,) = [file for file in (desk.folder / "home" / "local" / "logins").iterdir() if file.name != "lock"]
        assert password.stat().st_mode & 0o077 == 0
        lines = [command_of(pid) for pid, _ in processes_of(desk.uid())]
        assert len(lines) >= 2  # the supervisor and the worker
        assert [line for line in lines if password.read_text() in line or "PASSWORD" in line] == []


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda desk: desk.file.write_text("kind: ["), 2, "no YAML"),
        (lambda desk: desk.write("nothing", asset="missing"), 2, "put the Asset"),
        (lambda desk: desk.write("nothing", batchSize=0), 2, "spec.batchSize"),
        (lambda desk: desk.file.write_text(desk.file.read_text().replace("flowstone\n", "no-such-0815\n")), 2, "0815"),
    ],
    ids=["yaml", "asset", "spec", "program"],
)
def test_what_makes_no_sense_is_exit_code_2(desk: Desk, change: Callable[[Desk], None], code: int, words: str) -> None:
    """A broken file, a missing Asset, a wrong field, a program that is not here: named, and nothing is started."""
    desk.write("nothing")
    change(desk)
    done = desk.run()
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert desk.batches() == []


def test_tenants_are_judged_and_kept_apart(desk: Desk, tmp_path: Path) -> None:
    """An asset for tier premium over two tenants: the premium one's partition is made under its own login and in its
    own place, the basic one's is skipped with the reason, and a tenant that nobody registered is named."""
    with Ledger.connect(desk.place.operator, cluster="local") as ledger:
        registry = TenantRegistry(ledger.database, "local")
        registry.register("acme", "premium")
        registry.register("globex", "basic")
    script = f'echo "$FLOWSTONE_TENANT $FLOWSTONE_STORAGE_PREFIX $PGUSER" >> {tmp_path}/said'
    desk.write("nothing", ["acme|a", "globex|a"])
    asset, backfill = yaml.safe_load_all(desk.file.read_text())
    asset["spec"] |= {
        "partitionedBy": [{"name": "org", "type": "tenant"}, {"name": "letter", "type": "string"}],
        "requiredTier": "premium",
        "storage": {"bucket": "data", "prefix": "by/{tenant}/"},
    }
    asset["spec"]["template"]["spec"]["containers"][0] |= {"command": ["sh", "-c", script], "args": []}
    desk.file.write_text(yaml.safe_dump_all([asset, backfill]))
    done = desk.run()
    assert (done.returncode, "tenant globex (tier basic, required premium)" in done.stderr) == (1, True), done.stderr
    assert desk.states() == {"acme|a": "succeeded", "globex|a": "skipped"}
    (said,) = (tmp_path / "said").read_text().splitlines()
    assert said.startswith("acme by/acme/ tn_")
    backfill["spec"]["keys"] = ["initech|a"]
    desk.file.write_text(yaml.safe_dump_all([asset, backfill]))
    unknown = desk.run()
    assert (unknown.returncode, "initech" in unknown.stderr) == (1, True)


def test_without_local_it_says_what_is_for_a_cluster(desk: Desk) -> None:
    """`flowstone run` alone is a usage error that names both ways."""
    desk.write("nothing")
    done = subprocess.run(
        [*FLOWSTONE, "run", "-f", str(desk.file)], env=desk.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--local" in done.stderr
    assert "flowstone backfill run" in done.stderr


def test_a_database_without_a_ledger_is_named(empty_database: Place, tmp_path: Path) -> None:
    """Exit code 3, and what to do."""
    desk = Desk(empty_database, tmp_path)
    desk.write("nothing")
    done = desk.run()
    assert done.returncode == 3
    assert "flowstone migrate" in done.stderr


def test_without_a_database_one_comes_along(tmp_path: Path, place: Place) -> None:
    """No --database: the embedded PostgreSQL is started, used and stopped; a second start finds what is done."""
    base = Path(tempfile.mkdtemp(prefix="flowstone-run-"))
    base.chmod(0o755)  # as root, the server runs as another account that must get there
    try:
        desk = Desk(place, tmp_path)
        desk.write("nothing")
        command = [*FLOWSTONE, "run", "-f", str(desk.file), "--local", "--folder", str(base / "home"), "-o", "json"]
        environment = desk.environment()
        for _ in range(2):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["status"]["counts"]["succeeded"] == 3
        assert not (base / "home" / "data" / "postmaster.pid").exists()
    finally:
        shutil.rmtree(base)
