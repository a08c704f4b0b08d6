"""The embedded PostgreSQL: started, shared, stopped, started again, by root and by an ordinary account."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from psycopg.conninfo import conninfo_to_dict

from flowstone.backfill.records import Counts, NewBackfill
from flowstone.db.embedded import INSTALLER, default_folder, programs, start_embedded
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerRefused

LOG = structlog.get_logger()

UID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any account can reach."""
    base = Path(tempfile.mkdtemp(prefix="flowstone-embedded-"))
    base.chmod(0o755)
    yield base / "postgres"
    shutil.rmtree(base)


def test_it_keeps_what_was_written(folder: Path) -> None:
    """A ledger planned in one session is there in the next, on the same data."""
    new = NewBackfill(UID, "local", "default", "b", "n/local/default", "local/default/a", {}, "h")
    with start_embedded(folder, log=LOG) as server, Ledger.connect(server.conninfo(), cluster="local") as ledger:
        ledger.check_schema()
        ledger.register(new)
        ledger.plan(UID, [("n/local/default", "a")], total=1, set_hash="h", select="Missing")
    with start_embedded(folder, log=LOG) as server, Ledger.connect(server.conninfo(), cluster="local") as ledger:
        assert ledger.counts(UID) == Counts(total=1, queued=1)


def test_a_folder_that_is_there_already(folder: Path) -> None:
    """One that is empty, or has runs over another database in it, will do; one with other things stays as it was."""
    (folder / "local" / "runs").mkdir(parents=True)
    with start_embedded(folder, log=LOG) as server:
        psycopg.connect(server.conninfo()).close()
    assert (folder / "local" / "runs").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_root_gives_no_folder_away_that_has_other_things_or_cannot_be_reached(folder: Path) -> None:
    """Both are refused with the remedy, and belong to whom they belonged."""
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(LedgerRefused, match=r"thesis.txt.*give a folder that is empty"):
        start_embedded(folder, log=LOG)
    (folder / "thesis.txt").unlink()
    folder.parent.chmod(0o700)
    with pytest.raises(LedgerRefused, match=rf"may not pass through {folder.parent}: give a folder below /var/lib"):
        start_embedded(folder, log=LOG)
    assert folder.stat().st_uid == 0


def test_the_last_user_stops_it(folder: Path) -> None:
    """While one user is left the server runs; after the last one it does not; closing twice is nothing."""
    first, second = start_embedded(folder, log=LOG), start_embedded(folder, log=LOG)
    first.close()
    first.close()
    psycopg.connect(second.conninfo()).close()
    second.close()
    assert not (folder / "data" / "postmaster.pid").exists()


def test_a_killed_users_server_is_taken_over(folder: Path) -> None:
    """A server whose users were all killed serves the next one, who stops it."""
    code = (
        "import os, pathlib, structlog\n"
        "from flowstone.db.embedded import start_embedded\n"
        f"start_embedded(pathlib.Path({str(folder)!r}), log=structlog.get_logger())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    left = (folder / "data" / "postmaster.pid").read_text().splitlines()[0]
    with start_embedded(folder, log=LOG):
        assert (folder / "data" / "postmaster.pid").read_text().splitlines()[0] == left
    assert not (folder / "data" / "postmaster.pid").exists()


def test_a_folder_with_a_long_path(folder: Path) -> None:
    """A path that no Unix socket can have is no obstacle."""
    deep = folder / ("d" * 90)
    folder.mkdir()
    folder.chmod(0o755)
    with start_embedded(deep, log=LOG) as server:
        psycopg.connect(server.conninfo()).close()
        elsewhere = Path(str(conninfo_to_dict(server.conninfo())["host"]))
        assert elsewhere.exists()
    assert not elsewhere.exists()


def test_data_of_a_version_that_is_not_installed(folder: Path) -> None:
    """Data of another major version are not touched; the message says which."""
    with pytest.raises(LedgerRefused, match="PostgreSQL 9"):
        programs(9)
    assert programs(16) != programs(18) == programs(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
class TestAccounts:
    def test_root_keeps_its_folders_closed(self, folder: Path) -> None:
        """Root's server runs as another account and changes the mode of no folder on the way."""
        private = folder.parent / "private"
        private.mkdir(mode=0o711)
        before = private.stat().st_mode
        with start_embedded(private / "postgres", log=LOG) as server:
            owner = (private / "postgres" / "data").stat().st_uid
            psycopg.connect(server.conninfo()).close()
        assert private.stat().st_mode == before
        assert owner != 0
        assert default_folder().parts[:3] == ("/", "var", "lib")

    def test_an_ordinary_account(self, folder: Path) -> None:
        """An account that is not root starts a server of its own."""
        folder.parent.chmod(0o777)
        code = (
            "import pathlib, structlog, psycopg\n"
            "from flowstone.db.embedded import start_embedded\n"
            f"with start_embedded(pathlib.Path({str(folder)!r}), log=structlog.get_logger()) as server:\n"
            "    print(psycopg.connect(server.conninfo()).execute('SELECT session_user').fetchone()[0])\n"
        )
        told = as_nobody(code)
        assert told.stdout.splitlines()[-1:] == ["flowstone_operator"], told.stderr
        assert folder.stat().st_uid == pwd.getpwnam("nobody").pw_uid

    def test_another_account_is_not_let_in(self, folder: Path) -> None:
        """Who did not make the server cannot connect, even where the socket can be reached."""
        with start_embedded(folder, log=LOG) as server:
            folder.chmod(0o777)
            code = f"import psycopg; psycopg.connect({server.conninfo(INSTALLER)!r})"
            refused = as_nobody(code)
        assert refused.returncode == 1
        assert "Peer authentication failed" in refused.stderr


def as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as the account `nobody`, who may read this Python even where it lies in root's home."""
    capability = "+dac_read_search"
    become = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    become += [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    return subprocess.run(
        [*become, sys.executable, "-c", code],
        cwd="/",
        env={**os.environ, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
