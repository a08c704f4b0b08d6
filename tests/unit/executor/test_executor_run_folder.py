"""One run on this machine, with real processes: whatever is killed, the folder tells how it stands."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flowstone.executor import supervisor
from flowstone.executor.port import Ended, Running
from flowstone.executor.run_folder import RunFolder

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    """A run's folder with two keys; what it started is killed afterwards."""
    made = RunFolder(tmp_path / "run")
    made.write_keys(["a", "b"])
    yield made
    for name in ("supervisor", "worker"):
        with suppress(OSError, ValueError):
            os.kill(int((made.path / name).read_text()), signal.SIGKILL)


def start(run: RunFolder, *words: str, grace: float = 10) -> None:
    """Start a command in the folder."""
    run.start(words, ENVIRONMENT, None, grace)


def until(good: Callable[[], bool], what: str) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + 20
    while not good():
        assert time.monotonic() < deadline, f"not {what} in 20 s"
        time.sleep(0.01)


def ended(run: RunFolder) -> Ended:
    """How it ended."""
    until(lambda: isinstance(run.state(), Ended), "ended")
    state = run.state()
    assert isinstance(state, Ended)
    return state


def is_alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_goes_from_nothing_to_its_end(run: RunFolder) -> None:
    """Nothing, then running, then ended with the exit code and the last words of its output."""
    assert run.state() is None
    start(run, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert run.has_started
    assert ended(run) == Ended(succeeded=False, exit_code=3, reason="Error", message="out\nerr")


def test_success_has_no_last_words(run: RunFolder) -> None:
    """A run that ended well says nothing."""
    start(run, "sh", "-c", "echo hello")
    assert ended(run) == Ended(succeeded=True, exit_code=0)


def test_the_folder_is_private(run: RunFolder) -> None:
    """Nobody else on this machine may look into a run."""
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_starting_twice_runs_once(run: RunFolder) -> None:
    """However often and from wherever a run is started, its command runs once."""
    command = ["sh", "-c", f"echo once >> {run.path}/count; sleep 1"]
    arguments: list[str | Path] = [sys.executable, "-I", "-S", supervisor.__file__, run.path, "10", "--", *command]
    both = [subprocess.Popen(arguments, env=ENVIRONMENT, start_new_session=True) for _ in range(4)]
    for one in both:
        assert one.wait(20) == 0
    ended(run)
    start(run, *command)
    assert (run.path / "count").read_text() == "once\n"


def test_stop_asks_first(run: RunFolder) -> None:
    """SIGTERM reaches the command; that it was stopped counts as a disruption, whatever its exit code."""
    start(run, "sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    until(lambda: "up" in run.tail(), "up")
    run.stop()
    assert ended(run) == Ended(succeeded=True, exit_code=0, disrupted=True)
    assert "bye" in run.tail()


def test_stop_kills_who_does_not_listen(run: RunFolder) -> None:
    """A command that ignores SIGTERM is killed after its grace, also when it is asked only once."""
    start(run, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done", grace=0.2)
    until(lambda: "up" in run.tail(), "up")
    run.stop()
    assert isinstance(run.state(), Running | Ended)
    state = ended(run)
    assert (state.exit_code, state.reason, state.disrupted) == (137, "SIGKILL", True)


def test_stop_before_the_start_starts_nothing(run: RunFolder) -> None:
    """A run that was asked to stop before it started never runs its command."""
    run.stop()
    start(run, "sh", "-c", f"touch {run.path}/ran")
    state = ended(run)
    assert (state.exit_code, state.disrupted) == (143, True)
    assert not (run.path / "ran").exists()


def test_nothing_outlives_its_command(run: RunFolder) -> None:
    """What the command left in the background is killed with it, also what made itself a session of its own."""
    script = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    start(run, "sh", "-c", f'sleep 600 & echo $!; {sys.executable} -c "{script}"')
    ended(run)
    left = [int(line) for line in run.tail().split()]
    assert len(left) == 2
    assert [pid for pid in left if is_alive(pid)] == []


def test_a_command_that_is_not_there_ends_with_127(run: RunFolder) -> None:
    """As in a shell, and the log names it."""
    start(run, "no-such-program-0815")
    state = ended(run)
    assert (state.exit_code, state.reason) == (127, "StartError")
    assert "no-such-program-0815" in state.message


def test_without_its_supervisor_a_command_still_counts_as_running(run: RunFolder) -> None:
    """Whoever kills the supervisor does not make the run look ended; when the command is over, it was disrupted."""
    start(run, "sleep", "600")
    until(lambda: run.state() == Running(ready=True), "ready")
    os.kill(int((run.path / "supervisor").read_text()), signal.SIGKILL)
    until(lambda: not is_alive(int((run.path / "supervisor").read_text())), "killed")
    assert run.state() == Running(ready=True)
    run.stop()
    state = ended(run)
    assert (state.disrupted, state.reason, state.exit_code) == (True, "SupervisorLost", None)


def test_after_a_power_cut_a_run_was_disrupted(run: RunFolder) -> None:
    """A folder that says started, without any process and without an end, is a run that the machine took down."""
    (run.path / "started").touch()
    state = run.state()
    assert isinstance(state, Ended)
    assert (state.disrupted, state.reason) == (True, "SupervisorLost")


def test_the_end_is_written_last(run: RunFolder) -> None:
    """What says how it ended is whole whenever it is there."""
    start(run, "true")
    ended(run)
    assert json.loads((run.path / "exit").read_text()) == {"code": 0, "reason": "", "stopped": False}
    assert not (run.path / "exit.new").exists()


def test_only_the_end_of_a_long_log_is_kept(run: RunFolder) -> None:
    """2 KiB of a megabyte, and the last line is among them."""
    start(run, "sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    message = ended(run).message
    assert message.endswith("\nthe end")
    assert len(message) <= 2048
