"""Calls of other programs, and files written so that a kill leaves no half one."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.errors import CommandError
from tests.cluster.layout import MARK
from tests.cluster.progress import Progress

HEARTBEAT_SECONDS = 30.0
TAIL_LINES = 20

SCRATCH = ".tmp-"
"""How the names of temporary folders begin."""


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a text, indented for a message."""
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def tail_of(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file, indented for a message."""
    try:
        return tail(log.read_text(errors="replace"), lines)
    except FileNotFoundError:
        return "    (it wrote no log)"


def run(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program and return what it printed.

    Args:
        arguments: the command line.
        env: added to this process's environment.
        text: given to the program as its input.
        directory: where it runs; unset = where this process does.

    Raises:
        CommandError: it exited with an error, or is not installed.
    """
    command = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            command,
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(env or {})},
            cwd=directory,
        )
    except FileNotFoundError as missing:
        raise CommandError(f"{command[0]} is not installed or not on PATH") from missing
    if done.returncode:
        raise CommandError(
            f"{' '.join(command)} failed with exit code {done.returncode}:\n{tail(done.stderr or done.stdout)}"
        )
    return done.stdout


def succeeds(arguments: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> bool:
    """Whether a program exits with 0."""
    try:
        run(arguments, env=env)
    except CommandError:
        return False
    return True


def run_long(
    arguments: Sequence[str | Path],
    log: Path,
    progress: Progress,
    label: str,
    *,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a slow program with its output in a log, and say now and then that it is still at work.

    It carries the cluster's mark, so that the next start ends it when this starter was killed.

    Raises:
        CommandError: it exited with an error; the message ends with the log's last lines.
    """
    command = [str(argument) for argument in arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, _heartbeat(progress, label):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, **(env or {}), MARK: "build"},
            cwd=directory,
        )
    if done.returncode:
        raise CommandError(f"{label} failed (exit code {done.returncode}), log {log}:\n{tail_of(log)}")


@contextmanager
def _heartbeat(progress: Progress, label: str) -> Iterator[None]:
    done = threading.Event()

    def beat() -> None:
        seconds = 0.0
        while not done.wait(HEARTBEAT_SECONDS):
            seconds += HEARTBEAT_SECONDS
            progress(f"{label}: still at work after {seconds:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder below `parent`, so that what is made in it can be renamed into place."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard_scratch(parent: Path) -> None:
    """Remove the temporary folders that killed starters left; nobody may be using one."""
    for folder in parent.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusive(path: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time do something; the kernel frees the lock when its holder is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another command on the cluster to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Write a file in one step, readable from the start only for whom it is meant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    Path(name).replace(path)


def run_pipe(first: Sequence[str | Path], second: Sequence[str | Path], *, env: Mapping[str, str]) -> None:
    """Run `first | second`.

    Raises:
        CommandError: either exited with an error.
    """
    whole = {**os.environ, **env}
    left = subprocess.Popen([str(a) for a in first], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=whole)
    right = subprocess.run(
        [str(a) for a in second], stdin=left.stdout, capture_output=True, text=True, check=False, env=whole
    )
    if left.stdout is not None:
        left.stdout.close()  # else a `first` whose reader is gone would wait for ever
    _, complaint = left.communicate()
    for command, code, text in (
        (first, left.returncode, complaint.decode(errors="replace")),
        (second, right.returncode, right.stderr),
    ):
        if code:
            raise CommandError(f"{' '.join(map(str, command))} failed with exit code {code}:\n{tail(text)}")
