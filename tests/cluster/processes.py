"""Components as detached processes, and how ours are told from everybody else's.

Every process of the cluster inherits an environment variable (layout.MARK), so that it is found even when the
starter was killed before it wrote down the process id. Processes inside containers do not inherit it; they are
found by their cgroup, whose last element is the id of a container that our containerd keeps a folder for.
A recorded process id counts only together with the process's start time: ids are used again.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.errors import ClusterError, ComponentError
from tests.cluster.layout import MARK, Layout
from tests.cluster.shell import tail_of, write

POLL_SECONDS = 0.05

PROC = Path("/proc")


@dataclass(frozen=True)
class Component:
    """A part of the cluster that runs all the time."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 60.0
    """Seconds until it must be ready; generous, because other work may share the machine."""


@dataclass(frozen=True)
class Record:
    """A started process, as it stands in its pid file."""

    name: str
    pid: int
    started: int
    """The kernel's start time of the process, in clock ticks since boot."""

    boot: str
    """The id of the boot that `started` counts from."""


def start(component: Component, layout: Layout) -> Record:
    """Start a component in a session of its own, with its output in its log."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **component.environment, MARK: component.name}
    log = layout.logs / f"{component.name}.log"
    pid = os.posix_spawnp(
        component.command[0],
        list(component.command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, number) for number in _inherited()),
        ],
        setsid=True,
    )
    record = Record(component.name, pid, start_time(pid) or 0, boot_id())
    write(layout.pids / f"{component.name}.json", json.dumps(record.__dict__))
    return record


def _inherited() -> list[int]:
    """Files that a child would get from whoever called us: with a lock among them it would hold that for ever."""
    found = []
    for name in os.listdir(PROC / "self" / "fd"):
        with suppress(OSError):  # the listing's own is closed by now
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def wait_until_ready(component: Component, record: Record, layout: Layout) -> None:
    """Return when the component answers.

    Raises:
        ComponentError: it ended, or was not ready in time.
    """
    log = layout.logs / f"{component.name}.log"

    def ready_or_ended() -> bool:
        if component.ready():
            return True
        if not alive(record):
            raise ComponentError(f"{component.name} ended while it started. Last lines of {log}:\n{tail_of(log)}")
        return False

    wait_until(ready_or_ended, component.patience, f"{component.name} was not ready", log)


def wait_until(condition: Callable[[], bool], seconds: float, complaint: str, log: Path) -> None:
    """Return when the condition holds.

    Raises:
        ComponentError: it does not after so many seconds; the message has the log's last lines.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ComponentError(f"{complaint} after {seconds:.0f} s. Last lines of {log}:\n{tail_of(log)}")
        time.sleep(POLL_SECONDS)


def records(layout: Layout) -> list[Record]:
    """What was started, by the pid files; an unreadable one counts as absent."""
    found = []
    for path in sorted(layout.pids.glob("*.json")):
        try:
            found.append(Record(**json.loads(path.read_text())))
        except (ValueError, TypeError, FileNotFoundError):
            continue
    return found


def alive(record: Record) -> bool:
    """Whether the very process of the record still runs, not another with its id."""
    return record.boot == boot_id() and record.started != 0 and start_time(record.pid) == record.started


def start_time(pid: int) -> int | None:
    """A process's start time in ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        status = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_start_time(status)


def parse_start_time(status: str) -> int | None:
    """Read the start time from the text of /proc/PID/stat (proc(5): field 22; the state is field 3)."""
    fields = status.rpartition(")")[2].split()  # the name, field 2, may itself contain spaces and brackets
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else started


def boot_id() -> str:
    """Changes with every boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def owned_processes(containers: frozenset[str]) -> list[int]:
    """All living processes of a cluster on this machine, whoever started it.

    Args:
        containers: ids of the containers that our containerd runs.
    """
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if pid != os.getpid() and _is_ours(pid, containers) and start_time(pid) is not None]


def running_components() -> set[str]:
    """Names of the components that run on this machine, whichever checkout started them."""
    pids = owned_processes(frozenset())
    return {name for pid in pids if (name := mark_of(_read(pid, "environ"))) is not None}


def _is_ours(pid: int, containers: frozenset[str]) -> bool:
    marked = mark_of(_read(pid, "environ")) is not None
    return marked or in_container(_read(pid, "cgroup").decode(), containers)


def mark_of(environment: bytes) -> str | None:
    """The component's name in an environment block, as in /proc/PID/environ; None when it has no mark."""
    prefix = f"{MARK}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return variable.removeprefix(prefix).decode(errors="replace")
    return None


def in_container(cgroups: str, containers: frozenset[str]) -> bool:
    """Whether the text of /proc/PID/cgroup places a process in one of the containers."""
    return any(containers.intersection(line.split("/")) for line in cgroups.splitlines())


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def kill_all(find: Callable[[], list[int]], patience: float = 20.0) -> int:
    """Kill until nothing is found any more, and return how many processes that took.

    A process may start another while it is being killed, hence the repetition.

    Raises:
        ClusterError: something does not end (it hangs in the kernel).
    """
    killed: set[int] = set()
    deadline = time.monotonic() + patience
    while pids := find():
        if time.monotonic() > deadline:
            raise ClusterError(f"these processes do not end, even when killed: {', '.join(map(str, pids))}")
        for pid in pids:
            _kill(pid)
        killed.update(pids)
        time.sleep(POLL_SECONDS)
    return len(killed)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
