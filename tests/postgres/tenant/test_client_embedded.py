"""FlowStone.connect() without a URL: the embedded database, its key, its two logins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from flowstone.client import FlowStone
from flowstone.db.embedded import default_folder
from flowstone.errors import TenantRequired, TenantUnknown, UnsafeLogin
from flowstone.tenant_context import current_tenant, with_tenant

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded database lies; others may pass through its parents, as the server does not run as root."""
    folder = tmp_path_factory.mktemp("embedded")
    for parent in (folder, *folder.parents[:3]):
        if parent != Path("/tmp"):  # noqa: S108 - pytest's own folders are below
            parent.chmod(0o755)
    return folder / "home"


@pytest.fixture(scope="module")
def stone(folder: Path) -> Iterator[FlowStone]:
    """A client over the embedded database."""
    with FlowStone.connect(folder=folder) as stone:
        yield stone


def test_the_seeds_cases(stone: FlowStone) -> None:
    """Two tenants insert the same partition of the same asset; each lists one row with its own id."""
    for tenant in ("tenant_a", "tenant_b"):
        with with_tenant(tenant):
            assert current_tenant() == tenant
            stone.materializations.insert("asset_1", "p1")
    assert current_tenant() is None
    with with_tenant("tenant_a"):
        [row] = stone.materializations.list_all()
        assert row.metadata["tenant_id"] == "tenant_a"
    with pytest.raises(TenantRequired):
        stone.materializations.list_all()


def test_a_backfill_over_ten_days(stone: FlowStone) -> None:
    """Outside a tenant a backfill works in the default scope; its ten days are queued."""
    days = [date(2025, 1, 1) + timedelta(days=n) for n in range(10)]
    status = stone.backfills.status(stone.backfills.run("daily_report", partitions=days, max_parallel=5))
    assert (status.total, status.queued) == (10, 10)


def test_the_pooled_login_is_bound_and_the_key_is_the_owners(stone: FlowStone, folder: Path) -> None:
    """Tenants' work runs as flowstone_app, which bypasses nothing; the key beside the data has mode 0600."""
    with with_tenant("tenant_a"), stone.connection() as connection:
        row = connection.execute(
            "SELECT session_user, rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = session_user"
        )
        assert row.fetchone() == ("flowstone_app", False)
    assert (folder / "context.key").stat().st_mode & 0o777 == 0o600


def test_tenants_are_made_on_the_way_unless_told_otherwise(folder: Path, stone: FlowStone) -> None:
    """create_tenants=False refuses an unknown tenant, of the embedded database too."""
    with FlowStone.connect(folder=folder, create_tenants=False) as strict, with_tenant("never_seen"):
        with pytest.raises(TenantUnknown):
            strict.materializations.list_all()
        assert stone.materializations.list_all() == []
        assert strict.materializations.list_all() == []


def test_what_was_written_is_there_the_next_time(folder: Path, stone: FlowStone) -> None:
    """Another process that uses the same folder at the same time sees the tenant's rows, with the same key."""
    with with_tenant("tenant_c"):
        stone.materializations.insert("asset_1", "p9")
    program = (
        "import sys\nfrom flowstone.client import FlowStone\nfrom flowstone.tenant_context import with_tenant\n"
        "with FlowStone.connect(folder=sys.argv[1]) as stone, with_tenant('tenant_c'):\n"
        "    print([row.partition for row in stone.materializations.list_all()])\n"
    )
    environment = {**os.environ, "PYTHONPATH": "operator"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("['p9']\n", "")


def test_a_key_that_others_may_read_is_refused(folder: Path, stone: FlowStone) -> None:
    """When the key file was opened to others, connecting says so; nothing is left running by it."""
    key = folder / "context.key"
    key.chmod(0o644)
    try:
        with pytest.raises(UnsafeLogin, match="chmod 0600"):
            FlowStone.connect(folder=folder)
    finally:
        key.chmod(0o600)


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder the data lies in the user's data directory; root's lies in a system one."""
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    expected = "/var/lib/flowstone/postgres" if os.geteuid() == 0 else "/somewhere/data/flowstone/postgres"
    assert str(default_folder()) == expected
