"""Whose work it is: with_tenant over tasks, threads, generators and everything else that leaks context variables."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowstone.errors import TenantRefused, TenantRequired
from flowstone.tenant.capability import required
from flowstone.tenant_context import carry_tenant, current_tenant, with_tenant


def test_the_tenant_is_set_inside_and_gone_after() -> None:
    """Inside the block the tenant is its id, before and after it is None."""
    assert current_tenant() is None
    with with_tenant("tenant_a") as entered:
        assert entered == current_tenant() == "tenant_a"
    assert current_tenant() is None


def test_an_exception_clears_the_tenant() -> None:
    """An exception leaves the block and takes the tenant along."""
    with pytest.raises(ZeroDivisionError), with_tenant("tenant_a"):
        _ = 1 / 0
    assert current_tenant() is None


def test_nested_blocks_restore_the_outer_tenant() -> None:
    """The inner tenant holds inside, the outer one again afterwards, also after an exception."""
    with with_tenant("tenant_a"):
        with contextlib.suppress(KeyError), with_tenant("tenant_b"):
            assert current_tenant() == "tenant_b"
            raise KeyError
        assert current_tenant() == "tenant_a"


def test_blocks_left_out_of_order_bring_nobody_back() -> None:
    """Leaving the outer block first must not leave the inner tenant, nor bring the outer one back afterwards."""
    outer, inner = with_tenant("tenant_a"), with_tenant("tenant_b")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert current_tenant() == "tenant_b"
    inner.__exit__(None, None, None)
    assert current_tenant() is None


@pytest.mark.parametrize("bad", ["", "a" * 64, "-a", "a b", "a/b", "a\0b", "ä", "a\n", None, 7])
def test_what_is_no_tenant_id_is_refused_unrepeated(bad: object) -> None:
    """A text that is no tenant id raises before anything is set, and the message does not repeat it."""
    with pytest.raises(TenantRefused) as caught:
        with_tenant(bad)  # type: ignore[arg-type]  # the test is about what does not fit
    assert "64" not in str(caught.value)
    assert not (isinstance(bad, str) and len(bad) > 2 and bad in str(caught.value))


def test_the_id_of_a_canary_is_refused() -> None:
    """Nobody works as one of the tenants that the proof of isolation makes; the message says what to do."""
    with pytest.raises(TenantRefused, match=r"flowstone-canary- are reserved .*: choose another"):
        with_tenant("flowstone-canary-1234abcd-a")
    with with_tenant("flowstone-canary") as entered:
        assert entered == "flowstone-canary"


def test_one_block_object_is_entered_once() -> None:
    """A block object that is open cannot be entered again, which would lose one of the two."""
    block = with_tenant("tenant_a")
    with block, pytest.raises(RuntimeError):
        block.__enter__()
    assert current_tenant() is None


def test_a_decorated_function_works_for_the_tenant() -> None:
    """Used as a decorator it sets the tenant for each call, keeps name and result, and clears it."""

    @with_tenant("tenant_a")
    def work(factor: int) -> tuple[str | None, int]:
        return current_tenant(), 2 * factor

    assert work.__name__ == "work"
    assert [work(1), work(factor=2)] == [("tenant_a", 2), ("tenant_a", 4)]
    assert current_tenant() is None


async def test_a_decorated_coroutine_works_for_the_tenant() -> None:
    """The tenant holds over awaits, and two calls at once do not disturb each other."""

    def work_for(tenant: str) -> object:
        @with_tenant(tenant)
        async def work() -> str | None:
            await asyncio.sleep(0)
            return current_tenant()

        return work()

    assert await asyncio.gather(*(work_for(t) for t in ("tenant_a", "tenant_b"))) == ["tenant_a", "tenant_b"]  # type: ignore[call-overload]  # coroutines of one kind
    assert current_tenant() is None


def test_a_decorated_generator_has_the_tenant_while_it_runs() -> None:
    """A decorated generator sees the tenant at each step, its consumer never; send, throw and close reach it."""
    seen: list[str | None] = []

    @with_tenant("tenant_a")
    def steps() -> Iterator[object]:
        try:
            got = yield current_tenant()
            try:
                yield (got, current_tenant())
            except KeyError:
                yield ("caught", current_tenant())
        finally:
            seen.append(current_tenant())

    generator = steps()
    assert next(generator) == "tenant_a"
    assert current_tenant() is None
    assert generator.send(3) == (3, "tenant_a")  # type: ignore[attr-defined]  # it is a generator
    assert generator.throw(KeyError()) == ("caught", "tenant_a")  # type: ignore[attr-defined]  # it is a generator
    generator.close()  # type: ignore[attr-defined]  # it is a generator
    assert seen == ["tenant_a"]
    assert current_tenant() is None


async def test_a_decorated_async_generator_has_the_tenant_while_it_runs() -> None:
    """The same for an asynchronous generator, to its end and when it is closed early."""

    @with_tenant("tenant_a")
    async def steps() -> AsyncIterator[str | None]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield current_tenant()

    assert [step async for step in steps()] == ["tenant_a", "tenant_a"]
    async with contextlib.aclosing(steps()) as early:  # type: ignore[type-var]  # it is a generator
        assert await anext(early) == "tenant_a"
        assert current_tenant() is None
    assert current_tenant() is None


def test_a_suspended_generator_does_not_leak_its_tenant() -> None:
    """While a generator stands inside its block, its consumer has its own tenant or none."""

    def steps() -> Iterator[str | None]:
        with with_tenant("tenant_a"):
            yield current_tenant()
            yield current_tenant()

    generator = steps()
    assert next(generator) == "tenant_a"
    assert current_tenant() is None
    with with_tenant("tenant_b"):
        assert next(generator) == "tenant_a"
        assert current_tenant() == "tenant_b"
        assert next(generator, "end") == "end"
        assert current_tenant() == "tenant_b"
    assert current_tenant() is None


def test_a_generator_that_drives_another_one_sees_its_own() -> None:
    """Of two generators that are both running, the inner one's tenant is in force, and then the outer one's again."""

    def inner() -> Iterator[str | None]:
        with with_tenant("tenant_a"):
            yield current_tenant()
            yield current_tenant()

    def outer(driven: Iterator[str | None]) -> Iterator[tuple[str | None, str | None]]:
        with with_tenant("tenant_b"):
            yield next(driven), current_tenant()

    driven = inner()
    assert next(driven) == "tenant_a"
    assert list(outer(driven)) == [("tenant_a", "tenant_b")]
    assert current_tenant() is None


def test_two_interleaved_generators_keep_apart() -> None:
    """Generators of two tenants, advanced in turn, each see their own; dropping one brings nobody back."""

    def steps(tenant: str) -> Iterator[str | None]:
        with with_tenant(tenant):
            while True:
                yield current_tenant()

    first, second = steps("tenant_a"), steps("tenant_b")
    assert [next(first), next(second), next(first), next(second)] == ["tenant_a", "tenant_b"] * 2
    del first
    assert (next(second), current_tenant()) == ("tenant_b", None)
    del second
    assert current_tenant() is None


async def test_a_suspended_async_generator_does_not_leak_its_tenant() -> None:
    """The same for an asynchronous generator that is left standing."""

    async def steps() -> AsyncIterator[str | None]:
        async with with_tenant("tenant_a"):
            await asyncio.sleep(0)
            yield current_tenant()
            yield current_tenant()

    generator = steps()
    assert await anext(generator) == "tenant_a"
    assert current_tenant() is None
    assert [step async for step in generator] == ["tenant_a"]
    assert current_tenant() is None


def test_a_generator_that_contextlib_drives_is_a_block() -> None:
    """with_tenant wrapped in @contextmanager or an ExitStack holds for the body, and ends with it."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        with with_tenant("tenant_a"):
            yield

    with block():
        assert current_tenant() == "tenant_a"
    with contextlib.ExitStack() as stack:
        stack.enter_context(with_tenant("tenant_b"))
        assert current_tenant() == "tenant_b"
    assert current_tenant() is None


def test_an_exit_stack_in_a_generator_does_not_leak_either() -> None:
    """The block belongs to the generator, though an ExitStack of contextlib entered it."""

    def steps() -> Iterator[str | None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(with_tenant("tenant_a"))
            yield current_tenant()

    generator = steps()
    assert next(generator) == "tenant_a"
    assert current_tenant() is None


def test_who_consumes_a_generator_is_told_that_it_stands_still() -> None:
    """Its block has not ended, so the message does not say so; once it has, it does not speak of a generator."""

    def steps() -> Iterator[None]:
        with with_tenant("tenant_a"):
            yield

    generator = steps()
    next(generator)
    with pytest.raises(TenantRequired, match="in a generator that stands still"):
        required()
    assert list(generator) == []
    with pytest.raises(TenantRequired, match=r"^no tenant is set"):
        required()


async def test_a_task_keeps_the_tenant_until_the_block_ends() -> None:
    """A task made inside has the tenant while the block is open and nobody afterwards, not even an outer one."""
    ended = asyncio.Event()

    async def work() -> list[str | None]:
        before = current_tenant()
        await ended.wait()
        with pytest.raises(TenantRequired, match="has ended"):
            required()
        return [before, current_tenant()]

    with with_tenant("tenant_b"):
        with with_tenant("tenant_a"):
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
        ended.set()
        assert await task == ["tenant_a", None]


async def test_a_task_made_by_a_generator_never_falls_back_to_its_consumers_tenant() -> None:
    """A task made inside a generator's block works for that tenant or for nobody, also when the generator stands."""

    async def work() -> str | None:
        await asyncio.sleep(0)
        return current_tenant()

    def steps() -> Iterator[asyncio.Task[str | None]]:
        with with_tenant("tenant_a"):
            yield asyncio.get_running_loop().create_task(work())

    with with_tenant("tenant_b"):
        generator = steps()
        assert await next(generator) == "tenant_a"
        late = work()
        context = contextvars.copy_context()
        assert next(generator, None) is None
        assert await asyncio.get_running_loop().create_task(late, context=context) is None


async def test_concurrent_tasks_do_not_see_each_other() -> None:
    """A hundred tasks of two tenants, interleaved at each step, each see only their own."""

    async def work(tenant: str) -> set[str | None]:
        with with_tenant(tenant):
            seen = set()
            for _ in range(20):
                await asyncio.sleep(0)
                seen.add(current_tenant())
            return seen

    tenants = ["tenant_a", "tenant_b"] * 50
    assert await asyncio.gather(*map(work, tenants)) == [{tenant} for tenant in tenants]
    assert current_tenant() is None


async def test_a_cancelled_task_leaves_no_tenant() -> None:
    """Cancellation inside the block ends it, in the task's own context and in ours."""
    inside = asyncio.Event()
    seen: list[str | None] = []

    async def work() -> None:
        try:
            with with_tenant("tenant_a"):
                inside.set()
                await asyncio.Event().wait()
        finally:
            seen.append(current_tenant())

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [None]
    assert current_tenant() is None


def test_a_plain_thread_has_no_tenant() -> None:
    """Threads fail closed: neither a new one nor a pool's has the tenant of whoever started it."""
    seen: list[str | None] = []
    with with_tenant("tenant_a"), ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=lambda: seen.append(current_tenant()))
        thread.start()
        thread.join()
        seen.append(pool.submit(current_tenant).result())
    assert seen == [None, None]


def test_a_carried_function_has_the_tenant_in_a_thread_while_the_block_is_open() -> None:
    """carry_tenant passes the tenant on; after the block the carried function raises; the pool's thread is clean."""
    with ThreadPoolExecutor(1) as pool:
        with with_tenant("tenant_a"):
            carried = carry_tenant(current_tenant)
            assert pool.submit(carried).result() == "tenant_a"
            assert pool.submit(current_tenant).result() is None
        with pytest.raises(TenantRequired, match="has ended"):
            pool.submit(carried).result()
    with pytest.raises(TenantRequired):
        carry_tenant(current_tenant)


def test_a_carried_function_that_runs_on_ends_with_the_block() -> None:
    """A thread that is still inside the carried function when the block ends has no tenant from then on."""
    started, ended = threading.Event(), threading.Event()

    def work() -> list[str | None]:
        before = current_tenant()
        started.set()
        assert ended.wait(10)
        return [before, current_tenant()]

    with ThreadPoolExecutor(1) as pool:
        with with_tenant("tenant_a"):
            future = pool.submit(carry_tenant(work))
            assert started.wait(10)
        ended.set()
        assert future.result() == ["tenant_a", None]


async def test_to_thread_carries_the_context_along() -> None:
    """asyncio.to_thread copies the context on purpose, so it has the tenant, until the block ends."""
    with with_tenant("tenant_a"):
        assert await asyncio.to_thread(current_tenant) == "tenant_a"
    assert await asyncio.to_thread(current_tenant) is None


def test_work_without_a_tenant_says_what_to_do() -> None:
    """Without a tenant the error names the remedy, also for threads."""
    with pytest.raises(TenantRequired, match=r"with_tenant.*carry_tenant"):
        required()


def test_a_class_is_not_decorated() -> None:
    """Only its construction would have the tenant, so it is refused with the remedy."""

    class Report:
        """A class of a user."""

    with pytest.raises(TenantRefused, match="class Report: decorate its methods"):
        with_tenant("tenant_a")(Report)
