"""One run of one batch on this machine, as its folder tells: whoever comes next finds it there.

The folder is private (0700) and holds the keys, the log, and what the supervisor keeps (see `supervisor`). A run is
alive while its supervisor or its command holds a lock, which ends with the process whatever ends it; so neither a
killed parent nor a restarted machine leaves anything undecided.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from flowstone.executor import supervisor
from flowstone.executor.port import Ended, Running, RunState
from flowstone.worker.termination import MAX_BYTES, read_positions

LAST_WORDS = 2048
"""Bytes of the end of the log that go with a failure, as many as Kubernetes keeps."""

KEYS = "partitions"
LOG = "log"
MESSAGE = "message"
"""Stands for a container's termination message."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether there is a trace of the run."""
        return self.path.is_dir()

    @property
    def has_started(self) -> bool:
        """Whether it was started, or is about to be; then nobody starts it again."""
        return self._has("started") or self._is_locked("supervisor")

    @property
    def is_over(self) -> bool:
        """Whether its end is written down."""
        return self._has("exit")

    def write_keys(self, keys: Sequence[str]) -> Path:
        """Make the folder with the file of keys and an empty message; returns the path of the keys."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / MESSAGE).touch()
        new = self.path / f"{KEYS}.new"
        new.write_text("\n".join(keys) + "\n", encoding="utf-8")
        return new.rename(self.path / KEYS)

    def start(self, words: Sequence[str], environment: Mapping[str, str], folder: str | None, grace: float) -> None:
        """Start the supervisor, in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Raises:
            OSError: It could not be started.
        """
        with (self.path / LOG).open("ab") as log:
            done = subprocess.run(
                [sys.executable, "-I", "-S", supervisor.__file__, self.path, str(grace), "--", *words],
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=False,
            )
        if done.returncode != 0:
            raise OSError(f"its supervisor ended with {done.returncode}: {self.tail()}")

    def state(self) -> RunState | None:
        """How the run goes; None when it was never started."""
        if (ended := self._ended()) is not None:
            return ended
        if self._is_locked("supervisor") or self._is_locked("worker"):
            return Running(ready=self._pid("worker") is not None, stopping=self._has("stop"))
        if not self._has("started"):
            return None
        # The end may have been written between the two looks. If not, the supervisor was killed, or the machine.
        return self._ended() or Ended(succeeded=False, disrupted=True, reason="SupervisorLost", message=self.tail())

    def stop(self) -> None:
        """Ask the run to end; asking again does no harm, and makes up for whoever was killed while asking."""
        with suppress(FileNotFoundError):
            (self.path / "stop").touch()
            self._signal()

    def _signal(self) -> None:
        """SIGTERM to the supervisor; without one the command's own group is killed, since nobody would do it later."""
        if self._is_locked("supervisor"):
            if pid := self._pid("supervisor"):
                _quietly(os.kill, pid, signal.SIGTERM)
        elif self._is_locked("worker") and (pid := self._pid("worker")):
            _quietly(os.killpg, pid, signal.SIGKILL)

    def remove(self) -> None:
        """Take the folder away; nothing of the run may be alive."""
        shutil.rmtree(self.path, ignore_errors=True)

    def tail(self) -> str:
        """The last words of the log."""
        try:
            with (self.path / LOG).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _ended(self) -> Ended | None:
        try:
            told = json.loads((self.path / "exit").read_text())
        except FileNotFoundError:
            return None
        code, stopped = int(told["code"]), bool(told["stopped"])
        return Ended(
            succeeded=code == 0,
            exit_code=code,
            disrupted=stopped,
            reason=str(told["reason"]),
            message=self.tail() if code else "",
            positions=self._positions(),
        )

    def _positions(self) -> tuple[tuple[int, str], ...] | None:
        try:
            with (self.path / MESSAGE).open("rb") as file:
                return read_positions(file.read(MAX_BYTES).decode("utf-8", "replace"))
        except OSError:
            return None

    def _has(self, name: str) -> bool:
        return (self.path / name).exists()

    def _pid(self, name: str) -> int | None:
        try:
            return int((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def _is_locked(self, name: str) -> bool:
        try:
            with (self.path / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def _quietly(send: Callable[[int, int], None], pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        send(pid, number)
