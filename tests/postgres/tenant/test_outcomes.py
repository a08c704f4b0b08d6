"""Batches of tenants with a database of their own: outcome and fence are there, and the ledger copies the outcome."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import pytest
import structlog

from flowstone.backfill.edges.apart_executor import ApartExecutor
from flowstone.backfill.records import ClaimedBatch, RowChange
from flowstone.backfill.standing import Stand
from flowstone.db.outcomes import Outcomes
from flowstone.db.own_databases import OwnDatabases
from flowstone.executor.port import Ended, Executor, Gone, Running
from flowstone.partition.dimensions import Dimension
from flowstone.worker.contract import Assignment
from flowstone.worker.ledger import LedgerReports
from flowstone.worker.process import Surroundings
from flowstone.worker.session import Session
from flowstone.worker.statements import RowKey, commit_sql
from tests.postgres.conftest import Place
from tests.postgres.scripted import TENANTS_ASSET, Run, Story
from tests.postgres.tenant.tenant_world import World, any_server, home, inhabited

__all__ = ["any_server", "home"]

pytestmark = pytest.mark.postgres
KEYS = ["a", "b", "c"]
ASSET = "c1/analytics/daily"
SCOPE = "t/c1/acme"


@pytest.fixture
async def world(home: Place) -> AsyncIterator[World]:
    """A Tenant `acme` with a database of its own, and a table of results in it."""
    async with inhabited(home, isolation="Database") as world:
        with world.login() as connection:
            connection.execute("CREATE TABLE result (partition text)")
        yield world


@dataclass
class ApartStory(Story):
    """A backfill of acme, whose workers report in acme's database."""

    world: World = field(kw_only=True)

    def engine_executor(self) -> Executor:
        """The scripted runs, with the fence raised and the outcomes collected."""
        outcomes = Outcomes(self.ledger.database, OwnDatabases(self.ledger.database, self.place.operator))
        read = partial(self.ledger.open_batches, self.uid)
        return ApartExecutor(self.executor, outcomes, read, structlog.get_logger())

    async def pass_(self) -> Any:
        """One pass of the engine."""
        return await asyncio.to_thread(self.step)

    def reports(self, batch: ClaimedBatch) -> LedgerReports:
        """A worker's way to where it reports, as its Secret says."""
        dimensions = (Dimension("key", "string"),)
        assignment = Assignment(
            self.uid, "daily", SCOPE, ASSET, "daily", "acme", batch.fence, dimensions, batch.partitions, database=True
        )
        around = Surroundings(lambda event, **values: None, clock=lambda: 0.0, pause=lambda seconds: None)
        return LedgerReports(Session(around, self.world.secret()["uri"]), assignment, around.log)

    def work(self, run: Run, function: Callable[[Any, str], None] | None = None) -> list[str]:
        """Work off a run's batch as `flowstone work` does; return the outcomes."""

        def write(link: Any, key: str) -> None:
            link.execute("INSERT INTO result VALUES (%s)", [key])

        def one(key: str) -> str:
            return reports.inside(key, lambda link: (function or write)(link, key))

        with closing(self.reports(run.batch)) as reports:
            return [one(key) for key in reports.start() or {}]

    def results(self) -> list[str]:
        """What the workers have written in acme's database."""
        with self.world.login() as connection:
            return [one for (one,) in connection.execute("SELECT partition FROM result ORDER BY 1").fetchall()]

    def outcomes(self) -> dict[str, tuple[int, str]]:
        """Fence and state of each partition in acme's database."""
        with self.world.login() as connection:
            rows = connection.execute("SELECT partition, fence, state FROM flowstone.materialization").fetchall()
            return {partition: (fence, state) for partition, fence, state in rows}


@pytest.fixture
async def story(world: World) -> ApartStory:
    """A backfill over three keys, all in one batch."""
    spec = {"tenant": "acme", "batchSize": 3, "retry": {"backoffSeconds": 0}}
    return ApartStory(world.ledger, world.place, str(uuid.uuid4()), KEYS, spec, world=world)


async def test_rows_and_outcomes_are_in_the_tenants_database_once(story: ApartStory) -> None:
    """The fence is there before the run is; progress shows while it runs, and in the end the counts are right."""
    await story.pass_()
    (run,) = story.executor.going
    assert story.outcomes() == dict.fromkeys(KEYS, (run.batch.fence, "running"))
    with closing(story.reports(run.batch)) as reports:
        assert list(reports.start() or {}) == KEYS
        reports.inside("a", lambda link: link.execute("INSERT INTO result VALUES ('a')"))
        await story.pass_()
        assert story.states() == {"a": "succeeded", "b": "running", "c": "running"}
    assert story.work(run) == ["succeeded", "succeeded"]
    run.state = Ended(succeeded=True, exit_code=0)
    await story.pass_()
    assert (await story.pass_()).stand == Stand.SUCCEEDED
    assert story.states() == dict.fromkeys(KEYS, "succeeded")
    assert story.results() == KEYS
    assert story.place.all("SELECT count(*) FROM pg_class WHERE relname = 'result'") == [(0,)]
    assert story.place.all("SELECT count(*) FROM flowstone.latest WHERE scope = %s", SCOPE) == [(3,)]


async def test_a_superseded_worker_changes_nothing(story: ApartStory) -> None:
    """Its machine is lost while it computes: the partition is handed on, and its late commit is void."""
    await story.pass_()
    (old,) = story.executor.going

    def slow(link: Any, key: str) -> None:
        link.execute("INSERT INTO result VALUES (%s)", [f"late {key}"])
        old.state = Running(ready=True, lost=True)
        asyncio.run(story._engine().advance())
        old.state = Gone()
        asyncio.run(story._engine().advance())

    assert await asyncio.to_thread(story.work, old, slow) == ["superseded"] * 3
    (new,) = story.executor.going
    assert new.batch.fence > old.batch.fence
    assert story.work(new) == ["succeeded"] * 3
    assert story.work(old) == []
    new.state = Ended(succeeded=True, exit_code=0)
    await story.pass_()
    assert (await story.pass_()).stand == Stand.SUCCEEDED
    assert story.results() == KEYS


async def test_failures_are_copied_and_tried_again(story: ApartStory) -> None:
    """An error comes back with the ledger's row, is charged once, and the next attempt knows its number."""
    await story.pass_()
    (first,) = story.executor.going

    def fails(link: Any, key: str) -> None:
        raise ValueError(key)

    assert story.work(first, fails) == ["failed"] * 3
    first.state = Ended(succeeded=True, exit_code=0)
    await story.pass_()
    assert "ValueError: a" in story.place.all("SELECT error FROM flowstone.attempt ORDER BY partition")[0][0]
    await story.pass_()
    (second,) = story.executor.going
    with closing(story.reports(second.batch)) as reports:
        assert dict(reports.start() or {}) == dict.fromkeys(KEYS, 1)
    assert story.work(second) == ["succeeded"] * 3


async def test_a_success_that_the_ledger_missed_is_not_made_again(story: ApartStory) -> None:
    """The ledger gave the partition back without having asked; raising the fence leaves the success as it is."""
    await story.pass_()
    (run,) = story.executor.going
    with closing(story.reports(run.batch)) as reports:
        reports.start()
        reports.inside("a", lambda link: link.execute("INSERT INTO result VALUES ('a')"))
    back = [RowChange(key, "running", "queued", None, 0, None, None, charged=False) for key in KEYS]
    story.ledger.settle(run.batch.fence, back, close="Lost")
    story.executor.runs.clear()
    await story.pass_()
    (again,) = story.executor.going
    assert story.work(again) == ["succeeded", "succeeded"]
    again.state = Ended(succeeded=True, exit_code=0)
    await story.pass_()
    assert (await story.pass_()).stand == Stand.SUCCEEDED
    assert story.results() == KEYS


async def test_copying_twice_is_a_no_op(story: ApartStory) -> None:
    """An operator that dies between the two databases does it all again."""
    await story.pass_()
    (run,) = story.executor.going
    story.work(run)
    (batch,) = story.ledger.open_batches(story.uid)
    outcomes = Outcomes(story.ledger.database, OwnDatabases(story.ledger.database, story.place.operator))
    outcomes.raise_fence(story.world.secret()["PGDATABASE"], batch.fence)
    for _ in range(2):
        outcomes.conclude(story.world.secret()["PGDATABASE"], batch)
        assert story.states() == dict.fromkeys(KEYS, "succeeded")
    assert story.work(run) == []


async def test_a_database_that_is_away_concerns_its_batches_alone(story: ApartStory) -> None:
    """It is said at once, holds no slot for what was not launched, and everything goes on when it is back."""
    name = story.world.secret()["PGDATABASE"]
    story.world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    standing = await story.pass_()
    assert (standing.stand, standing.reason) == (Stand.BLOCKED, "DatabaseUnavailable")
    assert name in standing.message
    assert story.executor.launched == []
    other = Story(story.ledger, story.place, str(uuid.uuid4()), ["x"])
    await asyncio.to_thread(other.step)
    assert len(other.executor.going) == 1
    await story.pass_()
    assert story.ledger.open_batches(story.uid) == [] or story.executor.launched == []
    story.world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await story.pass_()
    await story.pass_()
    (run,) = story.executor.going
    story.work(run)
    run.state = Ended(succeeded=True, exit_code=0)
    story.world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    assert (await story.pass_()).reason == "DatabaseUnavailable"
    assert story.states() == dict.fromkeys(KEYS, "running")
    story.world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await story.pass_()
    assert (await story.pass_()).stand == Stand.SUCCEEDED


async def test_a_database_that_is_away_blocks_no_other_tenant(world: World) -> None:
    """While another tenant's batch runs it goes on and names the database; when nothing else does it is blocked."""
    keys, asset = ["acme|a", "zeta|a"], TENANTS_ASSET
    story = ApartStory(world.ledger, world.place, str(uuid.uuid4()), keys, {"batchSize": 1}, asset=asset, world=world)
    await story.pass_()
    mine, other = sorted(story.executor.going, key=lambda run: run.batch.scope)
    assert (mine.batch.scope, other.batch.scope) == (SCOPE, "t/c1/zeta")
    name = world.secret()["PGDATABASE"]
    world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    story.later(60)
    standing = await story.pass_()
    assert standing.stand is Stand.RUNNING
    assert f"2 batches are out, some are held up: the tenant's database {name} does not answer" in standing.message
    story.succeed(other)
    assert (await story.pass_()).stand is Stand.RUNNING
    story.later(21)
    standing = await story.pass_()
    assert (standing.stand, standing.reason) == (Stand.BLOCKED, "DatabaseUnavailable")
    world.admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (await story.pass_()).stand is Stand.RUNNING


async def test_nobody_is_waited_for_who_holds_an_outcome(story: ApartStory) -> None:
    """A session of the tenant's that locks rows of a run that is over is ended; the next pass settles."""
    await story.pass_()
    (run,) = story.executor.going
    with story.world.login() as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT 1 FROM flowstone.materialization FOR UPDATE")
        run.state = Ended(succeeded=False, exit_code=1, disrupted=True)
        await story.pass_()
        assert story.states() == dict.fromkeys(KEYS, "running")
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")
    await story.pass_()
    assert len(story.executor.launched) == 2


async def test_any_program_commits_there_with_one_statement(story: ApartStory) -> None:
    """$FLOWSTONE_COMMIT_SQL passes once under the fence there; a second one takes the transaction with it."""
    await story.pass_()
    (run,) = story.executor.going
    statement = commit_sql(RowKey(SCOPE, ASSET, "a", story.uid, run.batch.fence))

    def commit(text: str) -> None:
        with story.world.login() as connection, connection.transaction():
            connection.execute("INSERT INTO result VALUES (%s)", [text])
            connection.execute(statement.encode())

    commit("a")
    with pytest.raises(psycopg.errors.RaiseException, match="handed to another worker"):
        commit("again")
    assert story.results() == ["a"]


async def test_what_a_tenant_writes_there_troubles_nobody(story: ApartStory) -> None:
    """Any time that it writes is taken for now; an outcome's table that is gone concerns its batches alone."""
    await story.pass_()
    (run,) = story.executor.going
    with story.world.login() as connection:
        connection.execute(
            "UPDATE flowstone.materialization SET state = 'succeeded', finished_at = 'infinity' WHERE partition = 'a'"
        )
        connection.execute("UPDATE flowstone.materialization SET state = 'succeeded', finished_at = '4713-01-01 BC'")
    await story.pass_()
    assert story.states() == dict.fromkeys(KEYS, "succeeded")
    name = story.world.secret()["PGDATABASE"]
    with psycopg.connect(story.place.server.conninfo(name), autocommit=True) as admin:
        admin.execute("DROP TABLE flowstone.batch")
    run.state = Ended(succeeded=True, exit_code=0)
    standing = await story.pass_()
    assert (standing.stand, standing.reason) == (Stand.BLOCKED, "DatabaseUnavailable")


async def test_a_forgotten_backfill_brings_home_what_was_reported(story: ApartStory) -> None:
    """Its resource is deleted while a worker is in the middle: the one success is known, and no other can follow."""
    await story.pass_()
    (run,) = story.executor.going
    outcomes = Outcomes(story.ledger.database, OwnDatabases(story.ledger.database, story.place.operator))
    with closing(story.reports(run.batch)) as reports:
        reports.start()
        reports.inside("a", lambda link: link.execute("INSERT INTO result VALUES ('a')"))
        outcomes.close_orphan(story.ledger, story.uid)
        assert reports.inside("b", lambda link: link.execute("INSERT INTO result VALUES ('b')")) == "superseded"
    assert story.states() == {"a": "succeeded", "b": "cancelled", "c": "cancelled"}
    assert story.results() == ["a"]


async def test_settled_batches_are_forgotten_there(story: ApartStory) -> None:
    """The tenant's database keeps one row per partition, and the batches that are open."""
    story.edit(batchSize=1, maxParallel=1)
    for _ in range(12):
        await story.pass_()
        for run in story.executor.going:
            story.work(run)
            run.state = Ended(succeeded=True, exit_code=0)
    assert story.states() == dict.fromkeys(KEYS, "succeeded")
    with story.world.login() as connection:
        assert connection.execute("SELECT count(*) FROM flowstone.batch").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM flowstone.materialization").fetchone() == (3,)
