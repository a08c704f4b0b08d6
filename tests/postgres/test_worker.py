"""The worker on a real ledger: exactly once, whatever breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from flowstone.backfill.records import RowChange
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.errors import LedgerUnavailable
from flowstone.partition.dimensions import Dimension
from flowstone.worker.context import Partition
from flowstone.worker.contract import Assignment
from flowstone.worker.execute import execute
from flowstone.worker.ledger import MAX_LOSSES, LedgerReports
from flowstone.worker.process import Surroundings
from flowstone.worker.session import Session
from flowstone.worker.statements import RowKey, commit_sql
from flowstone.worker.work import context, each, work
from tests.postgres.conftest import OTHER_SCOPE, SCOPE, Place, Queue, login, request
from tests.postgres.proxy import Proxy

KEYS = ["a", "b", "c"]
ASSET = "c1/analytics/daily"

Function = Callable[[Partition], None]


@dataclass(frozen=True)
class Batch:
    """A claimed batch with everything that its worker is given, and what an outsider sees of it."""

    place: Place
    uid: str
    fence: int
    keys: list[str]
    conninfo: str
    log: list[dict[str, Any]] = field(default_factory=list)

    def around(self, **changes: Any) -> Surroundings:
        """Surroundings whose log is kept and in which no time passes."""

        def log(event: str, **values: object) -> None:
            self.log.append({"event": event, **values})

        return Surroundings(log, **{"clock": lambda: 0.0, "pause": lambda seconds: None, **changes})

    @property
    def assignment(self) -> Assignment:
        """What the worker reads from its environment."""
        dimensions = (Dimension("key", "string"),)
        return Assignment(
            self.uid, "daily", SCOPE, ASSET, "daily", None, self.fence, dimensions, tuple(self.keys), database=True
        )

    def reports(self, around: Surroundings, port: int | None = None) -> LedgerReports:
        """The worker's way to the ledger, or to a proxy before it."""
        conninfo = make_conninfo(self.conninfo, port=port) if port else self.conninfo
        return LedgerReports(Session(around, conninfo), self.assignment, around.log)

    def run(self, function: Function, port: int | None = None, **changes: Any) -> int:
        """Work off the batch with a function; return how many partitions were reported."""
        around = self.around(**changes)
        with closing(self.reports(around, port)) as reports:
            pending = reports.start()
            assert pending is not None

            def one(partition: str, attempt: int) -> Any:
                return reports.inside(
                    partition, lambda link: function(context(self.assignment, partition, attempt, link))
                )

            return each(pending, one, around)

    def states(self) -> dict[str, str]:
        """The state of each row of the backfill."""
        query = "SELECT partition, state FROM flowstone.materialization WHERE backfill = %s ORDER BY ordinal"
        return dict(self.place.all(query, self.uid))

    def error(self, partition: str) -> str:
        """The error recorded with a partition."""
        query = "SELECT error FROM flowstone.materialization WHERE backfill = %s AND partition = %s"
        return str(self.place.all(query, self.uid, partition)[0][0])

    def written(self) -> list[str]:
        """What the user's function has written, as everybody sees it."""
        return [text for (text,) in self.place.all("SELECT partition FROM public.result ORDER BY partition")]

    def hand_on(self, ledger: Ledger) -> None:
        """Take the batch away from its worker and hand its rows out again, as the operator does."""
        running = [row.partition for row in ledger.rows_of(self.fence) if row.state == "running"]
        back = [
            RowChange(one, "running", "queued", reason=None, attempts=0, not_before=None, error=None, charged=False)
            for one in running
        ]
        ledger.settle(self.fence, back, close="Lost")
        assert len(ledger.claim(self.uid, request(batch_size=100))) == 1


Claim = Callable[..., Batch]


@pytest.fixture
def claim(place: Place, ledger: Ledger, logins: Logins, queue: Queue) -> Claim:
    """Hands out a batch over keys to the login of SCOPE, which may write to a table of results."""
    with place.connect() as admin:
        admin.execute("CREATE TABLE public.result (partition text, UNIQUE (partition) DEFERRABLE INITIALLY DEFERRED)")
        admin.execute("GRANT SELECT, INSERT ON public.result TO flowstone_namespace")
    conninfo = place.login(login(logins, SCOPE))

    def make(keys: list[str] | None = None) -> Batch:
        keys = keys or KEYS
        uid = queue(keys)
        (batch,) = ledger.claim(uid, request(batch_size=100))
        return Batch(place, uid, batch.fence, keys, conninfo)

    return make


@pytest.fixture
def batch(claim: Claim) -> Batch:
    """A batch of the keys a, b and c."""
    return claim()


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    """What stands between the worker and its ledger."""
    with Proxy(place.server.port) as proxy:
        yield proxy


def write(p: Partition) -> None:
    """Write the partition's key to the table of results."""
    p.connection.execute("INSERT INTO public.result VALUES (%s)", [p.text])


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_success_and_writes_become_visible_together(batch: Batch) -> None:
    """While the function runs nobody sees its row; afterwards the row and the success are both there."""
    seen: list[tuple[list[str], str]] = []

    def function(p: Partition) -> None:
        write(p)
        seen.append((batch.written(), batch.states()[p.text]))

    assert batch.run(function) == 3
    assert seen == [([], "running"), (["a"], "running"), (["a", "b"], "running")]
    assert (batch.written(), batch.states()) == (KEYS, dict.fromkeys(KEYS, "succeeded"))


def test_batch_is_marked_as_reporting(batch: Batch) -> None:
    """From its start on the batch counts as reporting, so that its exit code says nothing any more."""
    batch.run(lambda p: None)
    assert batch.place.all("SELECT reporting FROM flowstone.batch WHERE fence = %s", batch.fence) == [(True,)]


def test_failure_is_recorded_without_its_writes(batch: Batch) -> None:
    """An exception undoes the partition's writes, records its words, and the next partition goes on."""

    def function(p: Partition) -> None:
        write(p)
        if p.key == "b":
            raise ValueError("no such carrier")

    assert batch.run(function) == 3
    assert batch.states() == {"a": "succeeded", "b": "failed", "c": "succeeded"}
    assert batch.written() == ["a", "c"]
    assert batch.error("b").startswith("ValueError: no such carrier (test_worker.py:")


def test_failure_at_commit_is_recorded(batch: Batch) -> None:
    """A constraint that is only checked at COMMIT fails the partition like any other error."""

    def function(p: Partition) -> None:
        p.connection.execute("INSERT INTO public.result VALUES ('same')")

    batch.run(function)
    assert batch.states() == {"a": "succeeded", "b": "failed", "c": "failed"}
    assert batch.error("b").startswith("UniqueViolation: duplicate key")


def test_attempt_counts_charged_failures(batch: Batch) -> None:
    """The first try is attempt 1; each charged failure adds one."""
    with batch.place.connect() as admin:
        admin.execute("UPDATE flowstone.materialization SET attempts = 2 WHERE partition = 'b'")
    seen: dict[object, int] = {}
    batch.run(lambda p: seen.update({p.key: p.attempt}))
    assert seen == {"a": 1, "b": 3, "c": 1}


def test_superseded_worker_changes_nothing(batch: Batch, ledger: Ledger) -> None:
    """A worker whose batch was handed on loses what it wrote, and touches no further partition."""
    called = []

    def function(p: Partition) -> None:
        called.append(p.text)
        write(p)
        if p.key == "b":
            batch.hand_on(ledger)

    assert batch.run(function) == 1
    assert called == ["a", "b"]
    assert batch.written() == ["a"]
    assert batch.states() == {"a": "succeeded", "b": "running", "c": "running"}
    assert batch.log[-1] | {"seconds": 0} == {
        "event": "batch.ended",
        "succeeded": 1,
        "failed": 0,
        "superseded": 1,
        "seconds": 0,
    }


def test_superseded_failure_changes_nothing(batch: Batch, ledger: Ledger) -> None:
    """A failure that comes too late is not recorded either."""

    def function(p: Partition) -> None:
        batch.hand_on(ledger)
        raise ValueError

    assert batch.run(function) == 0
    assert set(batch.states().values()) == {"running"}


def test_worker_that_wakes_late_does_nothing(batch: Batch, ledger: Ledger) -> None:
    """A worker that starts after its batch was handed on calls nothing and reports nothing."""
    batch.hand_on(ledger)
    around = batch.around()
    with closing(batch.reports(around)) as reports:
        assert work("no.such:function", batch.assignment, reports, around) == 0
    assert set(batch.states().values()) == {"running"}
    assert [one["event"] for one in batch.log] == ["batch.superseded"]


def test_reported_partitions_are_not_done_again(batch: Batch) -> None:
    """A second worker under the same fence takes up only what the first has not reported, in the batch's order."""

    def crashing(p: Partition) -> None:
        if p.key == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(crashing)
    called: list[object] = []
    batch.run(lambda p: called.append(p.key))
    assert called == ["b", "c"]


def test_other_scopes_batch_is_out_of_reach(batch: Batch, ledger: Ledger, queue: Queue) -> None:
    """With another batch's number in its environment a worker finds no batch that is its own."""
    uid = queue(KEYS, scope=OTHER_SCOPE)
    (other,) = ledger.claim(uid, request(batch_size=100))
    stranger = Batch(batch.place, uid, other.fence, KEYS, batch.conninfo)
    with closing(stranger.reports(stranger.around())) as reports:
        assert reports.start() is None


def test_module_that_cannot_be_imported_fails_the_batch(batch: Batch) -> None:
    """Every partition is reported as failed with what is wrong with the image."""
    around = batch.around()
    with closing(batch.reports(around)) as reports:
        assert work("no_such_module_here:f", batch.assignment, reports, around) == 3
    assert set(batch.states().values()) == {"failed"}
    assert "No module named 'no_such_module_here'" in batch.error("c")


def commits(p: Partition) -> None:
    """Break the rule in the plainest way."""
    write(p)
    p.connection.commit()


def commits_and_goes_on(p: Partition) -> None:
    """Break the rule, and leave a transaction behind that looks like the one that was given."""
    commits(p)
    p.connection.execute("SELECT 1")


def rolls_back(p: Partition) -> None:
    """Throw away the given transaction."""
    p.connection.rollback()


def commits_in_sql(p: Partition) -> None:
    """Break the rule behind the driver's back."""
    p.connection.execute("COMMIT; BEGIN")


def closes(p: Partition) -> None:
    """Close what FlowStone still needs."""
    p.connection.close()


def swallows(p: Partition) -> None:
    """Go on after a statement that failed."""
    with suppress(psycopg.Error):
        p.connection.execute("SELECT 1/0")


def leaves_a_copy_open(p: Partition) -> None:
    """Begin to read and do not end."""
    p.connection.pgconn.send_query(b"COPY (SELECT 1) TO STDOUT")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (commits, "committed or rolled back"),
        (commits_and_goes_on, "committed or rolled back"),
        (rolls_back, "committed or rolled back"),
        (commits_in_sql, "committed or rolled back"),
        (closes, "closed the connection"),
        (swallows, "aborted its transaction"),
        (leaves_a_copy_open, "unfinished"),
    ],
)
def test_function_that_breaks_its_transaction_fails(batch: Batch, function: Function, words: str) -> None:
    """A function that ends, aborts or closes its transaction fails with the remedy; the next partition goes on."""

    def once(p: Partition) -> None:
        if p.key == "a":
            function(p)
        else:
            write(p)

    assert batch.run(once) == 3
    assert batch.states() == {"a": "failed", "b": "succeeded", "c": "succeeded"}
    assert words in batch.error("a")


def test_savepoints_and_odd_factories_are_allowed(batch: Batch) -> None:
    """A function may use savepoints, and set the connection up as it likes, without disturbing the report."""

    def function(p: Partition) -> None:
        p.connection.row_factory = dict_row
        p.connection.cursor_factory = psycopg.ClientCursor
        with pytest.raises(psycopg.errors.DivisionByZero), p.connection.transaction():
            p.connection.execute("SELECT 1/0")
        with p.connection.transaction():
            write(p)

    batch.run(function)
    assert (batch.written(), set(batch.states().values())) == (KEYS, {"succeeded"})


def test_connection_lost_in_the_middle_is_made_anew(batch: Batch) -> None:
    """When the session is ended while a function runs, the partition is done again, and its writes stand once."""
    tries: list[str] = []

    def function(p: Partition) -> None:
        tries.append(p.text)
        write(p)
        if tries == ["a", "b"]:
            batch.place.all("SELECT pg_terminate_backend(%s)", p.connection.info.backend_pid)
        p.connection.execute("SELECT 1")

    assert batch.run(function) == 3
    assert tries == ["a", "b", "b", "c"]
    assert (batch.written(), set(batch.states().values())) == (KEYS, {"succeeded"})


def test_partition_that_always_loses_its_connection_fails(batch: Batch) -> None:
    """A partition that breaks every connection fails after a few tries, and holds up nobody."""
    tries: list[str] = []

    def function(p: Partition) -> None:
        tries.append(p.text)
        if p.key == "a":
            p.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    batch.run(function)
    assert tries == ["a"] * MAX_LOSSES + ["b", "c"]
    assert batch.states() == {"a": "failed", "b": "succeeded", "c": "succeeded"}
    assert f"broke {MAX_LOSSES} times" in batch.error("a")


def test_commit_without_an_answer_is_looked_up(batch: Batch, proxy: Proxy) -> None:
    """When the connection breaks after the COMMIT and before its answer, the partition is not done again."""
    tries: list[str] = []

    def cut_after_commit() -> None:
        until(lambda: batch.states()["a"] == "succeeded")
        proxy.thaw()

    def function(p: Partition) -> None:
        tries.append(p.text)
        write(p)
        if p.key == "a":
            proxy.mute_after(b"COMMIT")
            thread.start()

    thread = threading.Thread(target=cut_after_commit)
    assert batch.run(function, proxy.port) == 3
    thread.join()
    assert tries == KEYS
    assert (batch.written(), set(batch.states().values())) == (KEYS, {"succeeded"})


def test_worker_waits_for_a_ledger_that_is_away(batch: Batch, proxy: Proxy) -> None:
    """While the ledger is away the worker tries again with growing pauses, and goes on where it stood."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            proxy.thaw()

    def function(p: Partition) -> None:
        if p.key == "b" and not pauses:
            proxy.cut()
        write(p)

    batch.run(function, proxy.port, pause=pause, chance=lambda: 0.5)
    assert pauses == [0.1, 0.2, 0.4, 0.8]
    assert (batch.written(), set(batch.states().values())) == (KEYS, {"succeeded"})


def test_worker_gives_up_after_minutes(batch: Batch, proxy: Proxy) -> None:
    """A ledger that stays away for 5 minutes ends the worker; what it had reported stays reported."""
    clock = [0.0]

    def pause(seconds: float) -> None:
        clock[0] += seconds

    def function(p: Partition) -> None:
        if p.key == "b":
            proxy.cut()
        write(p)

    with pytest.raises(LedgerUnavailable):
        batch.run(function, proxy.port, pause=pause, clock=lambda: clock[0])
    assert 300 < clock[0] < 310
    assert batch.states() == {"a": "succeeded", "b": "running", "c": "running"}


ODD_KEYS = ["it's", "back\\slash", "$flowstone$", ":name %25s {x}", "ünïcode", "--"]


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_commit_statement_takes_any_key(claim: Claim, conforming: str) -> None:
    """The statement that `exec` hands out records exactly its row, whatever the key looks like."""
    batch = claim(ODD_KEYS)
    with psycopg.connect(batch.conninfo) as link:
        link.execute(f"SET standard_conforming_strings = {conforming}".encode())
        for key in ODD_KEYS[:-1]:
            link.execute(commit_sql(RowKey(SCOPE, ASSET, key, batch.uid, batch.fence)).encode())
    assert batch.states() == {**dict.fromkeys(ODD_KEYS, "succeeded"), "--": "running"}


def test_commit_statement_of_a_superseded_worker_aborts(batch: Batch, ledger: Ledger) -> None:
    """After the batch was handed on the statement fails, and so takes the program's own writes with it."""
    statement = commit_sql(RowKey(SCOPE, ASSET, "a", batch.uid, batch.fence)).encode()
    batch.hand_on(ledger)
    with psycopg.connect(batch.conninfo) as link:
        link.execute("INSERT INTO public.result VALUES ('a')")
        with pytest.raises(psycopg.errors.RaiseException, match="handed to another worker"):
            link.execute(statement)
    assert batch.written() == []


PROGRAM = """
import os, sys, psycopg
key = os.environ["FLOWSTONE_PARTITION"]
if key == "b": sys.exit("no such carrier")
with psycopg.connect(os.environ["CONNINFO"]) as link:
    link.execute("INSERT INTO public.result VALUES (%s)", [key])
    if key == "c": link.execute(os.environ["FLOWSTONE_COMMIT_SQL"])
if key == "c": sys.exit(5)
"""


def run_program(batch: Batch, program: str) -> int:
    """Run a Python program for each partition of the batch."""
    around = batch.around()
    environment = {**os.environ, "CONNINFO": batch.conninfo}
    with closing(batch.reports(around)) as reports:
        return execute([sys.executable, "-c", program], batch.assignment, reports, environment, around)


def test_program_counts_by_its_exit_code_or_its_commit(batch: Batch) -> None:
    """Exit code 0 is a success, another one a failure with its last words, and a commit of its own stands."""
    assert run_program(batch, PROGRAM) == 3
    assert batch.states() == {"a": "succeeded", "b": "failed", "c": "succeeded"}
    assert batch.error("b") == "exit code 1: no such carrier"
    assert batch.written() == ["a", "c"]


def test_program_of_a_superseded_worker_leaves_no_outcome(batch: Batch, ledger: Ledger) -> None:
    """A batch that is handed on while a program runs is left alone: no outcome, and no further program."""

    def hand_on() -> None:
        until(lambda: batch.written() == ["a"])
        batch.hand_on(ledger)
        with batch.place.connect() as admin:
            admin.execute("INSERT INTO public.result VALUES ('go on')")

    waiting = """
import os, time, psycopg
with psycopg.connect(os.environ["CONNINFO"], autocommit=True) as link:
    link.execute("INSERT INTO public.result VALUES (%s)", [os.environ["FLOWSTONE_PARTITION"]])
    while not link.execute("SELECT FROM public.result WHERE partition = 'go on'").fetchall(): time.sleep(0.01)
"""
    thread = threading.Thread(target=hand_on)
    thread.start()
    assert run_program(batch, waiting) == 0
    thread.join()
    assert batch.written() == ["a", "go on"]
    assert set(batch.states().values()) == {"running"}


def test_program_is_not_started_for_what_was_handed_on(batch: Batch, ledger: Ledger) -> None:
    """A partition that was handed on between two programs is not begun at all."""
    started: list[str] = []
    with closing(batch.reports(batch.around())) as reports:
        assert reports.start() == dict.fromkeys(KEYS, 0)
        batch.hand_on(ledger)
        assert reports.after("a", lambda: started.append("a")) == "superseded"
    assert started == []


FUNCTIONS = """
import os, signal

def dies(p):
    p.connection.execute("INSERT INTO public.result VALUES (%s)", [p.text])
    if p.key == "c": os.kill(os.getpid(), signal.SIGKILL)

def sleeps(p):
    p.connection.execute("INSERT INTO public.result VALUES (%s)", [p.text])
    if p.key == "b": p.connection.execute("SELECT pg_sleep(600)")
"""


def environment(batch: Batch, folder: Path) -> dict[str, str]:
    """What a pod of the batch finds, with a module of functions in its working directory."""
    (folder / "functions.py").write_text(FUNCTIONS)
    (folder / "keys").write_text("\n".join(batch.keys) + "\n")
    login = conninfo_to_dict(batch.conninfo)
    return {
        "PATH": os.environ["PATH"],
        "FLOWSTONE_CONTRACT": "1",
        "FLOWSTONE_BACKFILL": batch.uid,
        "FLOWSTONE_BACKFILL_NAME": "daily",
        "FLOWSTONE_SCOPE": SCOPE,
        "FLOWSTONE_ASSET": ASSET,
        "FLOWSTONE_ASSET_ID": "daily",
        "FLOWSTONE_FENCE": str(batch.fence),
        "FLOWSTONE_DIMENSIONS": json.dumps([{"name": "key", "type": "string"}]),
        "FLOWSTONE_PARTITIONS_FILE": str(folder / "keys"),
        "PGHOST": str(login["host"]),
        "PGPORT": str(login["port"]),
        "PGDATABASE": str(login["dbname"]),
        "PGUSER": str(login["user"]),
        "PGPASSWORD": str(login["password"]),
    }


def process(batch: Batch, folder: Path, function: str) -> subprocess.Popen[str]:
    """Start `flowstone work` as a pod would."""
    return subprocess.Popen(
        [sys.executable, "-c", "from flowstone.cli.entry import main; main()", "work", f"functions:{function}"],
        env=environment(batch, folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_crash_leaves_only_what_was_reported(batch: Batch, tmp_path: Path) -> None:
    """A worker killed in its third partition has two successes; of the third nothing is left, not even its rows."""
    with process(batch, tmp_path, "dies") as worker:
        worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    until(lambda: not sessions(batch))
    assert batch.states() == {"a": "succeeded", "b": "succeeded", "c": "running"}
    assert batch.written() == ["a", "b"]


def test_sigterm_rolls_back_and_leaves(batch: Batch, tmp_path: Path) -> None:
    """SIGTERM cancels the statement that runs, rolls the partition back, and the worker exits with 143."""
    with process(batch, tmp_path, "sleeps") as worker:
        until(lambda: ("SELECT pg_sleep(600)",) in sessions(batch))
        worker.terminate()
        output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 143
    assert '"event": "batch.stopped"' in output
    until(lambda: not sessions(batch))
    assert batch.states() == {"a": "succeeded", "b": "running", "c": "running"}
    assert batch.written() == ["a"]


def sessions(batch: Batch) -> list[tuple[Any, ...]]:
    """The statements of the worker's sessions."""
    user = conninfo_to_dict(batch.conninfo)["user"]
    return batch.place.all("SELECT query FROM pg_stat_activity WHERE usename = %s", user)
