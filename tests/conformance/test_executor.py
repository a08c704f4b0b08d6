"""What the engine may rely on, whatever runs the batches."""

from __future__ import annotations

import asyncio

from flowstone.backfill.records import ClaimedBatch
from flowstone.backfill.standing import Stand, Standing
from flowstone.errors import InvalidSpec
from tests.conformance.world import Case, World, eventually, start

AT_ONCE = {"limit": 0, "backoffSeconds": 0}
ONE_MORE = {"limit": 1, "backoffSeconds": 0}


async def test_all_succeed_and_nothing_is_left(world: World) -> None:
    """Four partitions in batches of two: all recorded once, uncharged, and no trace of any run remains."""
    case = await start(world, world.function("nothing"), "abcd", batchSize=2, maxParallel=2)
    assert (await case.finish()).stand is Stand.SUCCEEDED
    assert case.rows() == dict.fromkeys("abcd", ("succeeded", 0, None))
    assert case.batches() == ["succeeded", "succeeded"]
    await eventually(lambda: not world.traces(case.uid), world.seconds, "tidied")
    assert world.alive(case.uid) == set()


async def test_a_program_counts_by_its_exit_code(world: World) -> None:
    """A program that knows nothing of FlowStone reads its key from the environment, and fails by its exit code."""
    container = world.program("sh", "-c", 'test "$FLOWSTONE_PARTITION" != b')
    case = await start(world, container, "abc", batchSize=1, retry=AT_ONCE)
    assert (await case.finish()).stand is Stand.PARTLY_FAILED
    assert {key: state for key, (state, _, _) in case.rows().items()} == {
        "a": "succeeded",
        "b": "failed",
        "c": "succeeded",
    }
    assert case.errors()["b"].startswith("exit code 1")


async def test_what_a_worker_reports_is_charged_to_that_partition_alone(world: World) -> None:
    """One of three raises: it has the exception's words and used up both attempts, its batch-mates succeed."""
    case = await start(world, world.function("picky", FAIL_ON="b"), "abc", batchSize=3, retry=ONE_MORE)
    await case.finish()
    assert case.rows() == {
        "a": ("succeeded", 0, None),
        "b": ("failed", 2, "AttemptsUsedUp"),
        "c": ("succeeded", 0, None),
    }
    assert "ValueError: no data for b" in case.errors()["b"]


async def test_a_killed_process_is_charged_to_the_partition_it_died_on(world: World) -> None:
    """One of four kills its process: tried alone, quarantined after two attempts; its batch-mates charged nothing."""
    case = await start(world, world.function("deadly", DIE_ON="b"), "abcd", batchSize=4, retry=ONE_MORE)
    await case.finish()
    assert case.rows() == {
        "a": ("succeeded", 0, None),
        "b": ("failed", 2, "Quarantined"),
        "c": ("succeeded", 0, None),
        "d": ("succeeded", 0, None),
    }
    assert case.errors()["b"].startswith("exit code 137")
    assert len(case.batches()) <= 4  # the first, the rest, and two attempts of the one alone
    named = {failure.job for failure in world.ledger.failures(case.uid)}
    await eventually(lambda: world.traces(case.uid) == named, world.seconds, "tidied but for the log")


async def test_stopped_runs_end_and_charge_nobody(world: World) -> None:
    """`suspend: Kill` ends the process; its partition is queued again without an attempt, and cancel ends the rest."""
    case = await start(world, world.function("slow", SECONDS_EACH="600"), "ab", batchSize=1, maxParallel=1)
    await case.until_alive(1)
    case.edit(suspend="Kill")
    await case.until(lambda _: "open" not in case.batches(), "closed")
    assert case.rows() == {"a": ("queued", 0, None), "b": ("queued", 0, None)}
    assert world.alive(case.uid) == set()
    case.edit(suspend=None, cancel=True)
    assert (await case.finish()).stand is Stand.CANCELLED


async def test_a_new_start_takes_up_what_runs(world: World) -> None:
    """The program that launched a run dies and starts anew: the run goes on under its fence, and none is added."""
    case = await start(world, world.function("slow", SECONDS_EACH="5"), "a")
    fences = await case.until_alive(1)
    case.restart()
    await case.step()
    assert world.alive(case.uid) == fences
    await case.finish()
    assert case.rows() == {"a": ("succeeded", 0, None)}
    assert case.batches() == ["succeeded"]


async def test_a_run_that_ended_unseen_is_found(world: World) -> None:
    """A run that ended while nobody looked is settled by the next start, by what it reported."""
    case = await start(world, world.function("nothing"), "abc", batchSize=3)
    await case.step()
    await eventually(lambda: case.rows()["c"][0] == "succeeded", world.seconds, "reported")
    case.restart()
    assert (await case.finish()).stand is Stand.SUCCEEDED
    assert case.batches() == ["succeeded"]


async def test_launching_twice_starts_one(world: World) -> None:
    """A batch launched by two programs at the same time and once more later is one run with one uid."""
    case = await start(world, world.function("slow", SECONDS_EACH="5"), "a", batchSize=1)
    (batch,) = await _claimed(case)
    other = world.executor(case.request.name, case.uid, case.asset)
    await other.prepare()
    uids = [*await asyncio.gather(case.executor.launch(batch), other.launch(batch))]
    await eventually(lambda: len(world.alive(case.uid)) == 1, world.seconds, "alive")
    uids.append(await other.launch(batch))
    assert len(set(uids)) == 1
    assert all(isinstance(uid, str) for uid in uids)
    await case.finish()
    assert (case.rows(), case.batches()) == ({"a": ("succeeded", 0, None)}, ["succeeded"])


async def test_a_batch_that_was_never_launched_is(world: World) -> None:
    """The program died between the claim and the launch: the next start launches the same batch."""
    case = await start(world, world.function("nothing"), "ab", batchSize=2)
    (batch,) = await _claimed(case)
    case.restart()
    await case.finish()
    assert case.batches() == ["succeeded"]
    assert {failure.job for failure in world.ledger.failures(case.uid)} == set()
    assert batch.job_name.startswith(case.request.run_prefix)


async def test_a_run_without_a_trace_is_handed_out_again(world: World) -> None:
    """Somebody takes a run away: its partition runs again under a new fence, and nobody is charged."""
    case = await start(world, world.function("slow", SECONDS_EACH="3"), "a")
    (fence,) = await case.until_alive(1)
    world.destroy(case.uid, f"{case.request.run_prefix}{fence}")
    await case.finish()
    assert case.rows() == {"a": ("succeeded", 0, None)}
    assert case.batches() == ["gone", "succeeded"]


async def test_a_command_that_is_not_there_is_named(world: World) -> None:
    """An unknown program is named where people look: as a refusal, as what blocks, or as the partition's error."""
    case = await start(world, world.program("no-such-program-0815"), "a", batchSize=1, retry=AT_ONCE)

    def named(standing: Standing) -> bool:
        return standing.finished or "no-such-program-0815" in standing.message

    try:
        said = (await case.until(named, "named")).message
    except InvalidSpec as refused:
        said = str(refused)
    assert "no-such-program-0815" in said + "".join(case.errors().values())


async def test_a_worker_sees_its_scope_alone(world: World) -> None:
    """The login that a worker gets sees the rows of its own scope, and no other's."""
    other = await start(world, world.function("nothing"), "x")
    await other.step()
    with world.ledger.database.transaction() as tx:
        tx.run("UPDATE flowstone.materialization SET scope = 'n/other/scope' WHERE backfill = %(u)s", {"u": other.uid})
    case = await start(world, world.function("foreign"), "a", retry=AT_ONCE)
    assert (await case.finish()).stand is Stand.SUCCEEDED, case.errors()


async def _claimed(case: Case) -> list[ClaimedBatch]:
    """Plan, and claim one batch without launching it."""
    case.edit(suspend="Drain")
    await case.step()
    case.edit(suspend=None)
    return await case.claim()
