"""The end of a tenant: how long its rows are kept, the file that has them, and how they come back from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from flowstone.cli.app import main
from flowstone.db import tenant_table
from flowstone.db.tenant_restore import restore
from flowstone.errors import ExportFailed, LedgerRefused, TenantUnknown
from flowstone.kube.paths import core, custom
from flowstone.tenant.changes import Ending
from tests.postgres.conftest import Place
from tests.postgres.servers import Server, installed
from tests.postgres.tenant.tenant_world import ACME, World, homes, inhabited, plain_server

pytestmark = pytest.mark.postgres
assert tenant_table.ALL  # its import registers the operation

ODD = "tab\there, line\nbreak, back\\slash, \\N, 'quote' and \N{SNOWMAN}"
"""What COPY writes in a way of its own."""

ROWS = [(1, None, ODD), (2, 1, ""), (3, 2, None)]
"""Each row's parent is another one."""


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    """The newest server of this machine."""
    with plain_server(max(installed())) as server:
        yield server


@pytest.fixture
def home(one_server: Server) -> Iterator[Place]:
    """A fresh, migrated database with a tenant table that refers to itself."""
    for place in homes(one_server):
        reach = partial(psycopg.connect, place.admin)
        engine = sa.create_engine("postgresql+psycopg://", creator=reach, poolclass=sa.NullPool)
        with engine.begin() as connection:
            op: Any = Operations(MigrationContext.configure(connection))
            op.tenant_table(
                "booking",
                sa.Column("id", sa.BigInteger, sa.Identity(always=True)),
                sa.Column("parent", sa.BigInteger),
                sa.Column("note", sa.Text),
                sa.Column("size", sa.Integer, sa.Computed("length(note)")),
                sa.ForeignKeyConstraint(["tenant_id", "parent"], ["public.booking.tenant_id", "public.booking.id"]),
                key=["id"],
            )
        yield place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where exports go."""
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


@pytest_asyncio.fixture
async def world(home: Place, folder: Path) -> AsyncIterator[World]:
    """The Tenant `acme` with three rows and one of another tenant's, in an installation that exports."""
    async with inhabited(home, exports=folder) as world:
        with world.place.connect() as admin:
            insert = (
                b"INSERT INTO booking (tenant_id, id, parent, note) OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s)"
            )
            for row in ROWS:
                admin.execute(insert, ["acme", *row])
            admin.execute(insert, ["other", 9, None, "other's"])
            admin.execute(
                "INSERT INTO flowstone.latest VALUES ('t/c1/acme', 'c1/n/daily', '2026-01-01', now(), 'v1', %s, 1)",
                [uuid.uuid4()],
            )
        yield world


async def end(world: World, **spec: Any) -> None:
    """Delete the Tenant, with its rows."""
    world.tenant(deletionPolicy="Delete", confirmDeletion="acme", **spec)
    await world.settle()
    world.kube.remove(ACME)
    await world.settle()


async def purge(world: World) -> None:
    """Let the time of retention be over."""
    world.admin("UPDATE flowstone.tenant SET retain_until = now() - interval '1 second' WHERE tenant_id = 'acme'")
    await world.settle()
    assert ACME not in world.kube.objects


async def heir(world: World, **spec: Any) -> dict[str, str]:
    """Apply a Tenant with a new id; returns its Secret."""
    path = custom("tenants", None, "heir")
    world.kube.put(path, {"kind": "Tenant", "metadata": {"name": "heir"}, "spec": {"namespaces": ["one"], **spec}})
    await world.settle("heir")
    world.kube.objects[core("secrets", "one", "flowstone-tenant-acme")] = world.kube.objects[
        core("secrets", "one", "flowstone-tenant-heir")
    ]
    return world.secret()


def names(folder: Path) -> list[str]:
    """Names of the files in a folder."""
    return [one.name for one in folder.iterdir()]


def make(folder: Path) -> None:
    """Make a folder."""
    folder.mkdir()


def exported(world: World) -> dict[str, str]:
    """What the status says of the export."""
    found: dict[str, str] = world.kube.objects[ACME]["status"]["export"]
    return found


async def test_rows_come_back_from_the_file(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The status names file and digest, which are the stored ones; after the purge the rows come back under a new id,
    each value as it was, with what was materialized; nobody else's rows were in the file."""
    await end(world)
    status = exported(world)
    file = folder / status["file"]
    assert names(folder) == [status["file"]]
    assert status["file"].startswith("acme-tn_")
    assert file.stat().st_mode & 0o777 == 0o600
    assert status["digest"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert f"exported to {status['file']}" in world.condition("Ready")[2]
    assert world.admin("SELECT export_digest FROM flowstone.tenant") == [
        (f"{status['file']}:{status['digest'].removeprefix('sha256:')}",)
    ]
    await purge(world)
    assert world.admin("SELECT tenant_id FROM booking") == [("other",)]

    secret = await heir(world)
    capsys.readouterr()
    assert main(["tenant", "restore", str(file), "--tenant", "heir", "--database-url", world.place.admin]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == status["digest"]
    assert {"public.booking: 3 rows", "flowstone.latest: 1 rows"} <= set(told)
    with world.login(secret) as tenant:
        seen = tenant.execute("SELECT tenant_id, id, parent, note, size FROM booking ORDER BY id").fetchall()
        assert seen == [("heir", *row, None if row[2] is None else len(row[2])) for row in ROWS]
        tenant.execute("INSERT INTO booking (parent, note) VALUES (3, 'next') RETURNING id")
        assert tenant.execute("SELECT max(id) > 3 FROM booking").fetchone() == (True,)
    assert world.admin("SELECT scope, partition, code_version FROM flowstone.latest") == [
        ("t/c1/heir", "2026-01-01", "v1")
    ]
    assert world.admin("SELECT note FROM booking WHERE tenant_id = 'other'") == [("other's",)]
    with pytest.raises(LedgerRefused, match="unique"):
        restore(world.place.admin, file, "heir")


@pytest.mark.parametrize("isolation", ["Schema", "Database"])
async def test_a_tenants_own_tables_come_back(home: Place, folder: Path, isolation: str) -> None:
    """What it made in a schema or database of its own is in the file, and comes back as its heir's own."""
    async with inhabited(home, exports=folder, isolation=isolation) as world:
        with world.login() as tenant:
            tenant.execute("CREATE TABLE sale (id int NOT NULL, price numeric(10, 2), tags text[])")
            tenant.execute("INSERT INTO sale VALUES (1, 9.90, '{a,b}'), (2, NULL, NULL)")
        await end(world, isolation=isolation)
        file = folder / exported(world)["file"]
        await purge(world)
        secret = await heir(world)
        with pytest.raises(LedgerRefused, match="isolation Schema or Database"):
            restore(world.place.admin, file, "heir")
        world.kube.remove(custom("tenants", None, "heir"))
        await world.settle("heir")
        path = custom("tenants", None, "next")
        spec = {"namespaces": ["two"], "isolation": isolation}
        world.kube.put(path, {"kind": "Tenant", "metadata": {"name": "next"}, "spec": spec})
        await world.settle("next")
        assert sum(restore(world.place.admin, file, "next").rows.values()) == 2
        found = world.kube.objects[core("secrets", "two", "flowstone-tenant-next")]["data"]
        world.kube.objects[core("secrets", "one", "flowstone-tenant-acme")] = {"data": found}
        secret = world.secret()
        with world.login(secret) as tenant:
            rows = tenant.execute("SELECT id, price::text, tags FROM sale ORDER BY id").fetchall()
            assert rows == [(1, "9.90", ["a", "b"]), (2, None, None)]
            with pytest.raises(psycopg.errors.NotNullViolation):
                tenant.execute("INSERT INTO sale (id) VALUES (NULL)")


async def test_a_restore_runs_nothing_that_a_tenant_wrote(home: Place, folder: Path) -> None:
    """A domain's check would run in a superuser's session, and could take that right; such a type is refused."""
    trap = """
        CREATE FUNCTION public.spring(text) RETURNS boolean LANGUAGE plpgsql AS
            'BEGIN EXECUTE ''RESET ROLE''; EXECUTE ''ALTER ROLE '' || current_user || '' SUPERUSER''; RETURN true; END';
        CREATE DOMAIN public.trap AS text CHECK (public.spring(VALUE));
    """
    async with inhabited(home, exports=folder, isolation="Database") as world:
        with world.login() as session:
            session.execute("CREATE DOMAIN public.trap AS text; CREATE TABLE kept (x public.trap[])")
            session.execute("INSERT INTO kept VALUES ('{x}')")
        await end(world, isolation="Database")
        file = folder / exported(world)["file"]
        await purge(world)
        secret = await heir(world, isolation="Database")
        with pytest.raises(LedgerRefused, match=r"type public.trap\[\] belongs to nobody"):
            restore(world.place.admin, file, "heir")
        with world.login(secret) as session:
            session.execute(trap)
        with pytest.raises(LedgerRefused, match=r"type public.trap\[\] belongs to tn_"):
            restore(world.place.admin, file, "heir")
        assert world.admin("SELECT count(*) FROM pg_roles WHERE rolsuper") == [(1,)]


async def test_without_a_place_nothing_is_pretended(home: Place) -> None:
    """The status says that there is no file, and how to get one; the digest is of the rows."""
    async with inhabited(home, ending=Ending(timedelta(days=3))) as world:
        await end(world)
        assert set(exported(world)) == {"notExported", "digest", "retainUntil"}
        assert "tenants.deletion.exportClaim" in exported(world)["notExported"]
        assert "not exported: no place" in world.condition("Ready")[2]
        [(kept,)] = world.admin("SELECT retain_until - suspended_at FROM flowstone.tenant")
        assert timedelta(days=3) <= kept < timedelta(days=3, minutes=1)


async def test_a_place_that_comes_later_is_used(world: World, folder: Path) -> None:
    """A tenant that waits without a file gets one as soon as there is a place; the time it is kept stays as it was."""
    await end(world)
    (folder / exported(world)["file"]).unlink()
    until = exported(world)["retainUntil"]
    world.admin("UPDATE flowstone.tenant SET export_digest = repeat('0', 64)")
    await world.settle()
    file = folder / exported(world)["file"]
    assert exported(world)["digest"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert exported(world)["retainUntil"] == until


async def test_a_place_that_cannot_be_written_holds_everything_up(home: Place, folder: Path) -> None:
    """The Tenant is not ready and says which folder; no row is deleted; once it can be written, all goes on."""
    absent = folder / "absent"
    async with inhabited(home, exports=absent) as world:
        world.admin("INSERT INTO booking (tenant_id, note) VALUES ('acme', 'x')")
        await end(world)
        assert world.condition("Ready")[1] == "StepFailed"
        assert str(absent) in world.condition("Ready")[2]
        assert world.admin("SELECT count(*) FROM booking WHERE tenant_id = 'acme'") == [(1,)]
        make(absent)
        await world.settle()
        assert names(absent) == [exported(world)["file"]]


async def test_nothing_of_a_damaged_file_is_restored(world: World, folder: Path, tmp_path: Path) -> None:
    """A changed row, a missing one, no archive, an unknown tenant, one that was purged, and no superuser are refused;
    no row comes back."""
    await end(world)
    file = folder / exported(world)["file"]
    await purge(world)
    await heir(world)
    attempts: list[tuple[Path, str, str, type[Exception], str]] = [
        (changed(file, tmp_path / "a", b"back", b"BACK"), "heir", world.place.admin, ExportFailed, "not those"),
        (changed(file, tmp_path / "b", b"acme\t2\t1\t\n", b""), "heir", world.place.admin, ExportFailed, "not those"),
        (Path(__file__), "heir", world.place.admin, ExportFailed, "no export"),
        (tmp_path / "none", "heir", world.place.admin, ExportFailed, "no export"),
        (file, "stranger", world.place.admin, TenantUnknown, "apply a Tenant"),
        (file, "acme", world.place.admin, TenantUnknown, "purged"),
        (file, "heir", world.place.operator, LedgerRefused, "superuser"),
    ]
    for path, tenant, conninfo, error, words in attempts:
        with pytest.raises(error, match=words):
            restore(conninfo, path, tenant)
    assert world.admin("SELECT tenant_id FROM booking") == [("other",)]
    world.admin("ALTER TABLE booking DROP COLUMN note CASCADE")
    with pytest.raises(LedgerRefused, match="no column note"):
        restore(world.place.admin, file, "heir")


def changed(file: Path, to: Path, old: bytes, new: bytes) -> Path:
    """Copy an archive with something else in the member that has the bookings."""
    shutil.copy(file, to)
    with zipfile.ZipFile(file) as origin, zipfile.ZipFile(to, "w") as copy:
        manifest = json.loads(origin.read("manifest.json"))
        [member] = [one["member"] for one in manifest["tables"] if one["table"] == "booking"]
        for name in origin.namelist():
            data = origin.read(name)
            copy.writestr(name, data.replace(old, new) if name == member else data)
    return to
