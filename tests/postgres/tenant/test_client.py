"""FlowStone.connect(url): materializations of the tenant in force, backfills of its scope, logins that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import psycopg
import pytest

from flowstone.client import FlowStone
from flowstone.db.ledger import Ledger
from flowstone.db.tenants import TenantRegistry
from flowstone.errors import (
    InvalidPartition,
    InvalidSet,
    InvalidSpec,
    LedgerRefused,
    SchemaNotCompatible,
    TenantRefused,
    TenantRequired,
    TenantUnknown,
    UnsafeLogin,
)
from flowstone.guard import Guards, TierGuard
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant_context import carry_tenant, with_tenant
from tests.postgres.servers import Server
from tests.postgres.tenant.conftest import OPERATOR_PASSWORD, POOL_PASSWORD

pytestmark = pytest.mark.postgres
DAYS = [date(2025, 1, 1) + timedelta(days=n) for n in range(10)]


@pytest.fixture(scope="module")
def key_file(keys: ContextKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the server's key."""
    path = tmp_path_factory.mktemp("keys") / "context.key"
    keys.write(path)
    return path


class Urls(TypedDict):
    """The addresses that a client is given."""

    url: str
    operator_url: str


@pytest.fixture
def urls(server: Server) -> Urls:
    """Addresses of the pooled login and of the operator's."""
    return {
        "url": server.conninfo("postgres", "app", POOL_PASSWORD),
        "operator_url": server.conninfo("postgres", "flowstone_operator", OPERATOR_PASSWORD),
    }


@pytest.fixture
def stone(urls: Urls, key_file: Path) -> Iterator[FlowStone]:
    """A client that knows two tenants that nobody else has."""
    with FlowStone.connect(**urls, key=key_file, create_tenants=True) as stone:
        yield stone


@pytest.fixture
def pair() -> tuple[str, str]:
    """Two new tenants' ids."""
    number = uuid.uuid4().hex[:8]
    return f"first_{number}", f"second_{number}"


def seen(stone: FlowStone) -> list[tuple[str, str, str]]:
    """Return what the tenant in force sees."""
    return [(one.asset, one.partition, one.metadata["tenant_id"]) for one in stone.materializations.list_all()]


def test_each_tenant_lists_its_own(stone: FlowStone, pair: tuple[str, str]) -> None:
    """With rows of two tenants, each lists one, with its own id in the metadata."""
    for tenant in pair:
        with with_tenant(tenant):
            made = stone.materializations.insert("asset_1", "p1")
            assert (made.asset, made.partition, made.metadata["tenant_id"]) == ("asset_1", "p1", tenant)
            assert abs(made.materialized_at - datetime.now(UTC)) < timedelta(minutes=1)
    for tenant in pair:
        with with_tenant(tenant):
            assert seen(stone) == [("asset_1", "p1", tenant)]


def test_outside_a_block_it_raises(stone: FlowStone, pair: tuple[str, str]) -> None:
    """Without a tenant, in a plain thread, and after the block, materializations and connections raise."""
    uses = (
        lambda: stone.materializations.insert("a", "p"),
        stone.materializations.list_all,
        lambda: stone.connection().__enter__(),
    )
    for use in uses:
        with pytest.raises(TenantRequired):
            use()
    with with_tenant(pair[0]), ThreadPoolExecutor(1) as threads:
        for use in uses:
            with pytest.raises(TenantRequired):
                threads.submit(use).result()
        assert threads.submit(carry_tenant(lambda: seen(stone))).result() == []


def test_nothing_odd_is_written(stone: FlowStone, pair: tuple[str, str]) -> None:
    """What is no asset id or no key is refused with the remedy, and nothing is written."""
    with with_tenant(pair[0]):
        for asset in ("", "a/b", "a" * 64, 7):
            with pytest.raises(InvalidSpec, match="write"):
                stone.materializations.insert(asset, "p")  # type: ignore[arg-type]  # the test is about what does not fit
        for partition in ("", "x" * 600, ("a", ("b",))):
            with pytest.raises(InvalidPartition):
                stone.materializations.insert("a", partition)  # type: ignore[arg-type]  # see above
        assert seen(stone) == []


async def test_tasks_and_threads_of_two_tenants_at_once(stone: FlowStone, pair: tuple[str, str]) -> None:
    """Twenty tasks that insert and list in threads, half of them cancelled once: nobody sees the other's rows."""
    for tenant in pair:
        with with_tenant(tenant):
            stone.materializations.insert("seed", "p")

    async def work(number: int) -> set[str]:
        with with_tenant(pair[number % 2]):
            await asyncio.to_thread(stone.materializations.insert, "asset", f"p{number}")
            return {row[2] for row in await asyncio.to_thread(seen, stone)}

    tasks = [asyncio.create_task(work(number)) for number in range(20)]
    for number in (3, 8, 13):
        asyncio.get_running_loop().call_later(0.003 * number, tasks[number].cancel)
    for number, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        assert isinstance(result, asyncio.CancelledError) or result == {pair[number % 2]}


def test_generators_and_nested_blocks(stone: FlowStone, pair: tuple[str, str]) -> None:
    """A generator of one tenant, consumed inside a block of the other, inserts for its own each time."""

    def reports() -> Iterator[str]:
        with with_tenant(pair[0]):
            for number in range(3):
                yield stone.materializations.insert("a", f"g{number}").metadata["tenant_id"]

    with with_tenant(pair[1]):
        for tenant in reports():
            assert tenant == pair[0]
            assert stone.materializations.insert("a", "c").metadata["tenant_id"] == pair[1]
            with with_tenant(pair[0]):
                assert len(seen(stone)) > 0
        assert [row[1] for row in seen(stone)] == ["c", "c", "c"]


def test_a_program_reports_its_own_and_no_backfills_rows(stone: FlowStone, pair: tuple[str, str]) -> None:
    """Any SQL over the pooled login: no queued, running or foreign row, no backfill's uid, no edit, no deletion."""
    with with_tenant(pair[0]):
        uid = stone.backfills.run("asset", partitions=["p1"])
        stone.materializations.insert("asset", "p2")
        statements = [
            "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence)"
            f" SELECT scope, asset, 'x', '{uid}', 9, 'succeeded', 0 FROM flowstone.latest",
            "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state)"
            " SELECT scope, asset, 'x', backfill, 9, 'queued' FROM flowstone.latest",
            "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence)"
            f" SELECT replace(scope, '{pair[0]}', '{pair[1]}'), asset, 'x', backfill, 9, 'succeeded', 0"
            " FROM flowstone.latest",
            "UPDATE flowstone.materialization SET state = 'cancelled'",
            "DELETE FROM flowstone.materialization",
            "UPDATE flowstone.latest SET fence = 9",
            "SELECT * FROM flowstone.tenant",
            "SELECT * FROM flowstone.context_key",
            "SELECT * FROM flowstone.backfill",
            "SET ROLE flowstone_operator",
            "LOCK TABLE flowstone.materialization IN SHARE MODE",
        ]
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege), stone.connection() as connection:
                connection.execute(statement.encode())
        assert stone.backfills.status(uid).queued == 1


def test_a_report_counts_for_the_next_backfill(stone: FlowStone, pair: tuple[str, str]) -> None:
    """`Missing` skips what was reported, `All` does not, and the other tenant's report counts for nobody else."""
    first, second = pair
    with with_tenant(first):
        stone.materializations.insert("asset", date(2025, 1, 3))
        missing = stone.backfills.status(stone.backfills.run("asset", partitions=DAYS))
        assert (missing.total, missing.queued, missing.skipped) == (10, 9, 1)
        everything = stone.backfills.status(stone.backfills.run("asset", partitions=DAYS, select="All"))
        assert (everything.queued, everything.skipped) == (10, 0)
    with with_tenant(second):
        other = stone.backfills.status(stone.backfills.run("asset", partitions=DAYS))
        assert (other.queued, other.skipped) == (10, 0)


def test_a_backfill_of_ten_days(stone: FlowStone) -> None:
    """Ten days make ten queued partitions; cancel cancels them all and ends the backfill."""
    uid = stone.backfills.run("daily_report", partitions=DAYS, max_parallel=5)
    status = stone.backfills.status(uid)
    assert (status.total, status.queued, status.running, status.phase) == (10, 10, 0, "Running")
    status = stone.backfills.cancel(uid)
    assert (status.total, status.queued, status.cancelled, status.phase) == (10, 0, 10, "Cancelled")
    assert stone.backfills.cancel(uid) == status


def test_a_lazy_range_and_an_iterator_do_as_well(stone: FlowStone) -> None:
    """Ranges of the partition module, sets and plain iterators are taken; an empty one is over at once."""
    from flowstone import partition

    days = partition.generate_range(date(2025, 1, 1), date(2025, 1, 5), "day")
    assert stone.backfills.status(stone.backfills.run("r", partitions=days)).total == 5
    assert stone.backfills.status(stone.backfills.run("r", partitions=iter(["a", "b"]))).total == 2
    assert stone.backfills.status(stone.backfills.run("r", partitions=[])).phase == "Succeeded"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"max_parallel": 0}, InvalidSpec),
        ({"max_parallel": True}, InvalidSpec),
        ({"batch_size": 10_001}, InvalidSpec),
        ({"asset": "a b"}, InvalidSpec),
        ({"partitions": ["a", "b", "a"]}, InvalidSet),
        ({"partitions": ["a", 3.5]}, InvalidPartition),
        ({"select": "Some"}, InvalidSpec),
        ({"required_tier": "gold"}, InvalidSpec),
    ],
)
def test_what_cannot_be_run_is_refused(stone: FlowStone, changes: dict[str, Any], error: type[Exception]) -> None:
    """A bad bound, id, key, repeated key, select or tier raises the error that names it."""
    with pytest.raises(error):
        stone.backfills.run(**{"asset": "a", "partitions": ["p"], **changes})


def test_a_backfill_is_known_where_it_was_run(stone: FlowStone, pair: tuple[str, str]) -> None:
    """Another tenant, and work without one, cannot see or cancel it, nor learn that it exists."""
    with with_tenant(pair[0]):
        uid = stone.backfills.run("asset", partitions=["p"])
    messages = set()
    for block in (with_tenant(pair[1]), contextlib.nullcontext()):
        with block:
            for method in (stone.backfills.status, stone.backfills.cancel):
                for one in (uid, str(uuid.uuid4())):
                    with pytest.raises(LedgerRefused) as caught:
                        method(one)
                    messages.add(str(caught.value))
    assert len(messages) == 1
    with pytest.raises(LedgerRefused, match="no id"):
        stone.backfills.status("no uuid")


def test_guards_are_asked_before_anything_is_queued(urls: Urls, key_file: Path, pair: tuple[str, str]) -> None:
    """An asset of a higher tier is refused for a basic tenant, and for work without one."""
    guards = Guards((("tier", TierGuard()),))
    with FlowStone.connect(**urls, key=key_file, create_tenants=True, guards=guards) as stone:
        with pytest.raises(TenantRefused):
            stone.backfills.run("a", partitions=["p"], required_tier="standard")
        with with_tenant(pair[0]):
            with pytest.raises(TenantRefused, match="'tier' refused"):
                stone.backfills.run("a", partitions=["p"], required_tier="standard")
            assert stone.backfills.run("a", partitions=["p"], required_tier="basic")


class Hides:
    """Hides asset `secret`, lets `given` be seen and not computed, and asks for the tier of a tenant about `dear`."""

    def can_access(self, asset: Any, context: Any) -> bool:
        return bool(asset.id != "secret" and (asset.id != "dear" or context.tenant.tier == "premium"))

    def can_materialize(self, asset: Any, context: Any) -> bool:
        return bool(asset.id != "given")


def test_guards_decide_what_is_reported_and_listed(
    stone: FlowStone, urls: Urls, key_file: Path, pair: tuple[str, str]
) -> None:
    """Rows of an asset that a guard hides are left out, and it gets no report; nor does one that may only be seen.

    The tier that a guard asks for is the registry's; where that cannot be read, the guard has refused, with the remedy.
    """
    guards = Guards((("mine", Hides()),))
    with Ledger.connect(urls["operator_url"], cluster="local") as ledger:
        TenantRegistry(ledger.database, "local").register(pair[1], "premium")
    for tenant, shown in ((pair[0], ["given", "plain"]), (pair[1], ["dear", "given", "plain"])):
        with FlowStone.connect(**urls, key=key_file, guards=guards) as guarded, with_tenant(tenant):
            for asset in ("dear", "given", "plain", "secret"):
                stone.materializations.insert(asset, "p")
            assert [row[0] for row in seen(guarded)] == shown
            for asset, action in (("secret", "access"), ("given", "materialize")):
                with pytest.raises(TenantRefused, match=f"^{action}: guard 'mine' refused"):
                    guarded.materializations.insert(asset, "p")
            guarded.materializations.insert("plain", "q")
            assert [row[0] for row in seen(guarded)] == [*shown, "plain"]
    with FlowStone.connect(urls["url"], key_file, guards=guards) as pooled, with_tenant(pair[1]):
        assert [row[0] for row in seen(pooled)] == ["given", "plain", "plain"]
        with pytest.raises(TenantRefused, match="operator_url="):
            pooled.materializations.insert("dear", "p")


def test_unknown_tenants_are_refused(urls: Urls, key_file: Path, pair: tuple[str, str]) -> None:
    """With a URL nobody is registered on the way, neither by reports nor by backfills."""
    with FlowStone.connect(**urls, key=key_file) as stone, with_tenant(pair[0]):
        for use in (stone.materializations.list_all, lambda: stone.backfills.run("a", partitions=["p"])):
            with pytest.raises(TenantUnknown) as caught:
                use()
            assert pair[0] not in str(caught.value)
            assert "create_tenants=True" in str(caught.value)


def test_the_id_of_a_canary_is_never_registered(urls: Urls) -> None:
    """The registry of a program refuses an id of the proof's own, and one that is none; nothing is written."""
    with Ledger.connect(urls["operator_url"], cluster="local") as ledger:
        registry = TenantRegistry(ledger.database, "local")
        for refused in ("flowstone-canary-1234abcd-a", "a b"):
            with pytest.raises(TenantRefused, match=r"choose another|beginning with"):
                registry.register(refused)
            assert registry.find(refused) is None


@pytest.mark.parametrize("login", ["postgres", "flowstone_operator"])
def test_logins_that_see_past_row_security_are_refused_for_tenants(
    server: Server, urls: Urls, key_file: Path, login: str
) -> None:
    """The superuser and the operator may run backfills, and are refused for tenants' rows with the remedy."""
    url = server.conninfo("postgres") if login == "postgres" else urls["operator_url"]
    with FlowStone.connect(url, key_file) as stone:
        assert stone.backfills.status(stone.backfills.run("a", partitions=["p"])).total == 1
        with with_tenant("tenant_a"), pytest.raises(UnsafeLogin, match=r"CREATE ROLE .* IN ROLE flowstone_pool"):
            stone.materializations.list_all()


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        ("pg_read_all_data", "context_key"),
        ("pg_write_all_data", "context_key"),
        ("SELECT (inner_pad) ON flowstone.context_key", "context_key"),
        ("flowstone_namespace", "flowstone_namespace"),
    ],
)
@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
def test_pooled_logins_with_the_key_or_a_namespaces_rows_are_refused(
    server: Server, key_file: Path, grant: str, words: str, inherits: str
) -> None:
    """Who may read or change the signing key could be any tenant; by a grant, a membership, or one to SET ROLE to."""
    with server.connect() as admin:
        admin.execute(f"CREATE ROLE odd LOGIN {inherits} PASSWORD '{POOL_PASSWORD}'".encode())
        admin.execute("CREATE ROLE between")
        try:
            admin.execute("GRANT flowstone_pool TO between")
            admin.execute(f"GRANT {grant} TO between".encode())
            admin.execute("GRANT between TO odd")
            url = server.conninfo("postgres", "odd", POOL_PASSWORD)
            refused = pytest.raises(UnsafeLogin, match=rf"{words}.*: connect with a login of its own: CREATE ROLE")
            with FlowStone.connect(url, key_file) as stone, with_tenant("tenant_a"), refused:
                stone.materializations.list_all()
        finally:
            admin.execute("DROP OWNED BY between; DROP ROLE odd, between")


def test_a_pooled_login_alone_cannot_run_backfills(urls: Urls, key_file: Path, server: Server) -> None:
    """Without the operator's address backfills are refused, saying which is missing; a database without ledger too."""
    with FlowStone.connect(urls["url"], key_file) as stone, pytest.raises(UnsafeLogin, match="operator_url="):
        stone.backfills.run("a", partitions=["p"])
    bare = server.conninfo("template1")
    with FlowStone.connect(urls["url"], key_file, operator_url=bare) as stone, pytest.raises(SchemaNotCompatible):
        stone.backfills.run("a", partitions=["p"])


SESSIONS = """
    SELECT pid, usename, state, backend_start, query FROM pg_stat_activity WHERE application_name = 'flowstone-client'
"""


def test_clients_close_what_they_opened(urls: Urls, key_file: Path, server: Server) -> None:
    """After the block no session of the client is left, and no thread."""
    before = threading.active_count()
    with FlowStone.connect(**urls, key=key_file) as stone, with_tenant("tenant_a"):
        stone.materializations.list_all()
        stone.backfills.run("a", partitions=["p"])
    with server.connect() as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flowstone-client'"
        deadline = time.monotonic() + 10  # a session ends a moment after its client has left
        while admin.execute(query).fetchone() != (0,):
            assert time.monotonic() < deadline, admin.execute(SESSIONS).fetchall()
    assert threading.active_count() <= before


def test_the_cluster_id_comes_from_the_environment_when_not_given(
    urls: Urls, key_file: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that names the operator's cluster only there works for its tenants, in scope and signature."""
    tenant = f"env_{uuid.uuid4().hex[:8]}"
    with Ledger.connect(urls["operator_url"], cluster="somewhere") as ledger:
        TenantRegistry(ledger.database, "somewhere").register(tenant)
    monkeypatch.setenv("FLOWSTONE_CLUSTER_ID", "somewhere")
    with FlowStone.connect(**urls, key=key_file) as stone, with_tenant(tenant):
        stone.materializations.insert("report", "p1")
        assert [row.partition for row in stone.materializations.list_all()] == ["p1"]
    monkeypatch.delenv("FLOWSTONE_CLUSTER_ID")
    with (
        FlowStone.connect(**urls, key=key_file) as stone,
        with_tenant(tenant),
        pytest.raises(TenantUnknown, match="FLOWSTONE_CLUSTER_ID"),
    ):
        stone.materializations.list_all()
