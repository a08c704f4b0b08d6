"""The worker as a process, without a database: outcomes go into the termination message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowstone.worker.termination import read_positions

FUNCTIONS = """
import os, sys, signal, time
from flowstone import Partition

def good(p: Partition): pass

def odd(p):
    if p.key.day == 2: raise ValueError(p.text)
    if p.key.day == 3: sys.exit(4)

def dies(p):
    if p.key.day == 3: os.kill(os.getpid(), signal.SIGKILL)

def modules(p):
    print("MODULES", *sorted({name.split(".")[0] for name in sys.modules}))

def hangs(p):
    if p.key.day == 2:
        print("HANGS", flush=True)
        naps()

def naps():
    # Short ones: a signal that comes just before a long sleep would only be seen at its end.
    while True: time.sleep(0.05)

def swallows(p):
    if p.key.day == 2:
        print("HANGS", flush=True)
        try: naps()
        except BaseException: pass"""

Command = list[str]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A batch of three days, a module of functions, and a place for the termination message."""
    (tmp_path / "keys").write_text("2013-01-01\n2013-01-02\n2013-01-03\n")
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("raise RuntimeError('while imported')")
    (tmp_path / "message").touch()
    return {
        "PATH": os.environ["PATH"],
        "FLOWSTONE_CONTRACT": "1",
        "FLOWSTONE_BACKFILL": "5f0c",
        "FLOWSTONE_BACKFILL_NAME": "delays",
        "FLOWSTONE_SCOPE": "n/c1/ns",
        "FLOWSTONE_ASSET": "c1/ns/asset",
        "FLOWSTONE_ASSET_ID": "asset",
        "FLOWSTONE_FENCE": "7",
        "FLOWSTONE_DIMENSIONS": '[{"name": "day", "type": "date"}]',
        "FLOWSTONE_PARTITIONS_FILE": str(tmp_path / "keys"),
        "FLOWSTONE_TERMINATION_LOG": str(tmp_path / "message"),
    }


@contextmanager
def started(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `flowstone` with arguments in the folder of the functions; whatever happens, it ends with the block."""
    code = "from flowstone.cli.entry import main; main()"
    folder = Path(environment["FLOWSTONE_PARTITIONS_FILE"]).parent
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=folder, text=True, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run `flowstone` to its end: exit code, standard output and standard error."""
    with started(environment, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def outcomes(environment: dict[str, str]) -> dict[int, str]:
    """Return what the termination message says, by position."""
    found = read_positions(Path(environment["FLOWSTONE_TERMINATION_LOG"]).read_text())
    assert found is not None
    return dict(found)


def test_every_partition_is_reported(environment: dict[str, str]) -> None:
    """Failures, also `sys.exit`, are reported and the next partition goes on; the exit code is 0."""
    code, output, errors = run(environment, "work", "functions:odd")
    assert (code, errors) == (0, "")
    assert outcomes(environment) == {
        0: "",
        1: "ValueError: 2013-01-02 (functions.py:8 in odd)",
        2: "SystemExit: 4 (functions.py:9 in odd)",
    }
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert events == [
        "batch.started",
        "partition.succeeded",
        *("partition.error", "partition.failed") * 2,
        "batch.ended",
    ]


def test_crash_keeps_what_was_reported(environment: dict[str, str]) -> None:
    """A process that is killed in its third partition has reported two."""
    code, _, _ = run(environment, "work", "functions:dies")
    assert code == -signal.SIGKILL
    assert outcomes(environment) == {0: "", 1: ""}


def test_module_that_cannot_be_imported_fails_each_partition(environment: dict[str, str]) -> None:
    """An image without the function fails every partition with the same explanation, and no crash."""
    code, _, _ = run(environment, "work", "broken:f")
    errors = outcomes(environment)
    assert code == 0
    assert "RuntimeError: while imported (broken.py:1 in <module>)" in errors[0]
    assert list(errors) == [0, 1, 2]


def test_start_imports_little(environment: dict[str, str]) -> None:
    """A worker's start counts for each batch: nothing of the command line or the operator is imported for it."""
    _, output, _ = run(environment, "work", "functions:modules")
    modules = next(line for line in output.splitlines() if line.startswith("MODULES")).split()[1:]
    assert {"flowstone", "functions"} <= set(modules)
    assert not {"typer", "click", "rich", "pydantic", "sqlalchemy", "alembic", "kopf", "psycopg", "structlog"} & set(
        modules
    )


@pytest.mark.parametrize("function", ["hangs", "swallows"])
def test_sigterm_ends_the_batch_at_once(environment: dict[str, str], function: str) -> None:
    """SIGTERM breaks off the partition at hand with exit code 143, also when the function swallows everything."""
    with started(environment, "work", f"functions:{function}") as process:
        assert process.stdout is not None
        assert any(line == "HANGS\n" for line in process.stdout)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert 0 in outcomes(environment)
    assert 2 not in outcomes(environment)


def test_program_is_run_for_each_partition(environment: dict[str, str]) -> None:
    """`exec` passes on the program's output, and keeps the end of its standard error for what failed."""
    script = 'echo "out $FLOWSTONE_PARTITION_DAY"; echo "bad $FLOWSTONE_PARTITION" >&2; test $FLOWSTONE_ATTEMPT = 2'
    code, output, errors = run(environment, "exec", "--", "sh", "-c", script)
    assert code == 0
    assert "out 2013-01-01\n" in output
    assert errors == "bad 2013-01-01\nbad 2013-01-02\nbad 2013-01-03\n"
    assert outcomes(environment) == {position: f"exit code 1: bad 2013-01-0{position + 1}" for position in range(3)}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["no-such-program"], "'no-such-program' cannot be started"),
        (["sh", "-c", "kill -9 $$"], "killed by SIGKILL: nothing on standard error"),
        (["sh", "-c", "yes x | head -c 100000 >&2; echo the end >&2; exit 3"], "the end"),
    ],
)
def test_program_that_fails_is_explained(environment: dict[str, str], command: Command, words: str) -> None:
    """A program that is missing, is killed or says too much is told in at most 2 KiB."""
    run(environment, "exec", *command)
    error = outcomes(environment)[0]
    assert words in error
    assert len(error) < 2048


def test_sigterm_ends_the_program_too(environment: dict[str, str]) -> None:
    """The program and what it started get SIGTERM; the worker exits with 143 and reports nothing."""
    script = "trap 'echo asked >&2; exit 0' TERM; echo HANGS; sleep 600 & wait"
    with started(environment, "exec", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert any(line == "HANGS\n" for line in process.stdout)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "asked\n")
    assert outcomes(environment) == {}


def test_grandchild_that_stays_does_not_hold_up(environment: dict[str, str], tmp_path: Path) -> None:
    """A background process that keeps standard error open does not keep the worker from going on."""
    code, _, _ = run(environment, "exec", "sh", "-c", f"sleep 60 >/dev/null & echo $! >> {tmp_path}/pids")
    assert code == 0
    assert outcomes(environment) == {0: "", 1: "", 2: ""}
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("arguments", [["work"], ["work", "a:b", "c"], ["exec"], ["exec", "--"], ["work", "--help"]])
def test_wrong_arguments_are_answered_with_the_usage(environment: dict[str, str], arguments: Command) -> None:
    """Without a function or a command the usage is shown, and the exit code is 2."""
    code, _, errors = run(environment, *arguments)
    assert (code, errors.split(" ")[0]) == (2, "usage:")


def test_worker_outside_a_job_explains_itself() -> None:
    """Somebody who calls `flowstone work` by hand learns that it belongs into a Job."""
    code = "from flowstone.cli.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "work", "a:b"], env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "run in Jobs that the operator makes" in done.stderr


def test_full_message_stops_without_losing_a_report(environment: dict[str, str], tmp_path: Path) -> None:
    """When no more outcomes fit, the worker stops and exits 0; what it reported is there, the rest runs again."""
    days = [f"{year:04}-{month:02}-01" for year in range(1000, 1300) for month in range(1, 13)]
    (tmp_path / "keys").write_text("\n".join(days) + "\n")
    (tmp_path / "functions.py").write_text("def f(p):\n    if p.key.month % 2: raise ValueError\n")
    code, output, _ = run(environment, "work", "functions:f")
    found = outcomes(environment)
    assert code == 0
    assert '"event": "reports.full"' in output
    assert 300 < len(found) < 3600
    assert list(found) == list(range(len(found)))
