"""What stands between FlowStone and a batch's process on this machine: starts it, ends it, writes down how it ended.

Run as `python -I -S supervisor.py FOLDER GRACE -- command ...`, so it imports the standard library alone. That returns
as soon as the supervisor, a process of its own, has taken over. It outlives whoever started it: a restarted parent
learns from the folder how things stand. In the folder it keeps

    supervisor   locked while this process lives; holds its pid
    worker       locked while the command lives, since it inherits the lock; holds its pid
    started      there from just before the command starts: whoever finds it never starts the command again
    stop         made by others: the command is to end, or not to start
    exit         how it ended, as JSON; written last, when nothing of the command can act any more

SIGTERM ends the command's group: SIGTERM to it, and SIGKILL after GRACE seconds. What the command left behind when it
ended is killed too, as a container's end would.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl(2): orphans become our children instead of process 1's."""

NOT_FOUND = 127
"""Exit code of a command that could not be started, as of a shell."""

LOCK_TRIES = 20
"""Whoever only looks holds a lock for microseconds; who still holds it after this many tries is another supervisor."""


class Supervisor:
    """One run of one command."""

    def __init__(self, folder: Path, grace: float, command: list[str]) -> None:
        self._folder = folder
        self._grace = grace
        self._command = command
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> None:
        """Start the command unless it was started before; returns in whoever called, and never in the supervisor.

        When this returns, the lock is held and `started` is there; so there is no moment at which a run is neither
        started nor not. The supervisor goes on as an orphan: nobody has to wait for it.
        """
        own = _locked(self._folder / "supervisor", inheritable=False)
        if own is None or (self._folder / "started").exists():
            return
        (self._folder / "started").touch()
        if os.fork() == 0:
            try:
                self._supervise(own)
            finally:
                os._exit(0)

    def _supervise(self, own: int) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        os.write(own, str(os.getpid()).encode())
        # In this order: who asks for a stop makes the file first and then looks for the pid.
        if (self._folder / "stop").exists():
            self._write(128 + signal.SIGTERM, "Stopped", stopped=True)
        else:
            self._work()

    def _work(self) -> None:
        _adopt_orphans()
        lock = _locked(self._folder / "worker", inheritable=True)
        if lock is None:
            print("the lock of a command that was never started is held", flush=True)
            return
        try:
            self._worker = subprocess.Popen(self._command, process_group=0, pass_fds=[lock])
        except (OSError, ValueError) as error:
            print(f"{self._command[0]!r} cannot be started: {error}", flush=True)
            self._write(NOT_FOUND, "StartError")
            return
        os.write(lock, str(self._worker.pid).encode())
        os.close(lock)
        if self._stopped:
            self._terminate(self._worker)
        code = self._worker.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _kill_rest(self._worker.pid)
        if code < 0:
            self._write(128 - code, signal.Signals(-code).name, stopped=self._stopped)
        else:
            self._write(code, "" if code == 0 else "Error", stopped=self._stopped)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        already, self._stopped = self._stopped, True
        if self._worker is not None and not already:
            self._terminate(self._worker)

    def _terminate(self, worker: subprocess.Popen[bytes]) -> None:
        _signal_group(worker.pid, signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, max(self._grace, 0.001))

    def _kill(self, number: int, frame: FrameType | None) -> None:
        if self._worker is not None:
            _signal_group(self._worker.pid, signal.SIGKILL)

    def _write(self, code: int, reason: str, *, stopped: bool = False) -> None:
        new = self._folder / "exit.new"
        new.write_text(json.dumps({"code": code, "reason": reason, "stopped": stopped}))
        new.rename(self._folder / "exit")


def _locked(path: Path, *, inheritable: bool) -> int | None:
    """A descriptor that holds the file's lock, or None when somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, inheritable)
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            os.ftruncate(descriptor, 0)
            return descriptor
    os.close(descriptor)
    return None


def _adopt_orphans() -> None:
    """Become the parent of what the command leaves behind, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def _kill_rest(group: int) -> None:
    """Kill what is left of the command's group, and every orphan of it until there is none."""
    _signal_group(group, signal.SIGKILL)
    while sys.platform == "linux":
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended == 0:
            for child in _children():
                _signal(child, signal.SIGKILL)
            time.sleep(0.005)


def _children() -> list[int]:
    """Our children, read from /proc: the fourth field of stat, after the name in parentheses, is the parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # nothing of it is left (macOS says EPERM for zombies)
        return


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    place, seconds, dashes, *words = sys.argv[1:]
    Supervisor(Path(place), float(seconds), words).run()
