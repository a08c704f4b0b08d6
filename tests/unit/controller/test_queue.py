"""The work queue, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from flowstone.controller.queue import WorkQueue, run_workers


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock) -> WorkQueue[str]:
    """A queue with waits of 1 to 8 s."""
    return WorkQueue(clock=clock, random=Random(1), base=1, limit=8)  # noqa: S311 - jitter


async def taken(queue: WorkQueue[str]) -> str | None:
    """The key that is due now, or None."""
    try:
        async with asyncio.timeout(0.01):
            return await queue.get()
    except TimeoutError:
        return None


async def test_a_key_added_twice_is_handed_out_once() -> None:
    """Ten events about one object cost one reconcile."""
    queue = make(Clock())
    for _ in range(10):
        queue.add("a")
    assert await taken(queue) == "a"
    queue.done("a")
    assert await taken(queue) is None


async def test_a_key_is_never_with_two_workers_and_nothing_is_lost() -> None:
    """What is added while a worker has the key waits until that worker is done."""
    queue = make(Clock())
    queue.add("a")
    assert await taken(queue) == "a"
    queue.add("a")
    assert await taken(queue) is None
    queue.done("a")
    assert await taken(queue) == "a"


async def test_a_delay_is_kept_and_can_only_be_brought_forward() -> None:
    """A key due in 10 s comes earlier when it is added with 5 s, and not later when added with 20 s."""
    clock = Clock()
    queue = make(clock)
    for delay in (10, 5, 20):
        queue.add("a", delay)
    clock.now += 4.9
    assert await taken(queue) is None
    clock.now += 0.2
    assert await taken(queue) == "a"
    queue.done("a")
    clock.now += 100
    assert await taken(queue) is None


async def test_done_with_a_wish_comes_back_then() -> None:
    """`again` is the seconds until the key is handed out once more."""
    clock = Clock()
    queue = make(clock)
    queue.add("a")
    await taken(queue)
    queue.done("a", again=3)
    assert await taken(queue) is None
    clock.now += 3
    assert await taken(queue) == "a"


@pytest.mark.parametrize("added", ["during the turn", "after it"])
@pytest.mark.parametrize(("took", "rest"), [(0.25, 0.25), (30, 1)])
async def test_a_key_rests_as_long_as_its_turn_took(added: str, took: float, rest: float) -> None:
    """A second at most, and only once: the turn after that one begins when it is asked for."""
    clock = Clock()
    queue = make(clock)
    queue.add("a")
    assert await taken(queue) == "a"
    clock.now += took
    if added == "during the turn":
        queue.add("a")
    queue.done("a", again=100)
    if added == "after it":
        queue.add("a")
    clock.now += rest - 0.01
    assert await taken(queue) is None
    clock.now += 0.02
    assert await taken(queue) == "a"
    queue.done("a")
    queue.add("a")
    assert await taken(queue) == "a"


async def test_what_a_worker_itself_wants_at_once_it_gets() -> None:
    """Work that is done in pieces goes on without a rest."""
    clock = Clock()
    queue = make(clock)
    queue.add("a")
    assert await taken(queue) == "a"
    clock.now += 3
    queue.done("a", again=0)
    assert await taken(queue) == "a"


async def test_failures_back_off_to_the_limit_and_success_forgets_them() -> None:
    """The wait doubles with each failure, stays between half and all of it, and starts anew after a success."""
    clock = Clock()
    queue = make(clock)
    queue.add("a")
    for ceiling in (1, 2, 4, 8, 8):
        assert await taken(queue) == "a"
        delay = queue.failed("a")
        assert ceiling / 2 <= delay <= ceiling
        clock.now += delay
    assert await taken(queue) == "a"
    queue.done("a", again=0)
    assert await taken(queue) == "a"
    assert queue.failed("a") <= 1


async def test_a_failing_key_does_not_hold_up_the_others() -> None:
    """While one key backs off, another is worked on at once."""
    queue = make(Clock())
    queue.add("bad")
    queue.add("good")
    assert await taken(queue) == "bad"
    queue.failed("bad")
    assert await taken(queue) == "good"


async def test_workers_hand_failures_to_the_listener_and_go_on() -> None:
    """An exception of one key is told, with the seconds until it is tried again, and ends no worker."""
    queue: WorkQueue[str] = WorkQueue(clock=asyncio.get_running_loop().time, random=Random(1))  # noqa: S311
    seen: list[str] = []
    told: list[str] = []
    both = asyncio.Event()

    async def process(key: str) -> float | None:
        seen.append(key)
        if key == "bad":
            raise ValueError(key)
        return None

    def on_error(key: str, error: Exception, delay: float) -> None:
        told.append(f"{key} {error} {delay > 0}")
        both.set()

    queue.add("good")
    queue.add("bad")
    workers = asyncio.create_task(run_workers(queue, process, on_error, count=1))
    async with asyncio.timeout(5):
        await both.wait()
    workers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await workers
    assert (seen, told) == (["good", "bad"], ["bad bad True"])
    assert (queue.busy, queue.retries) == (0, 1)
