"""The engine under any order of events: a state machine over the real ledger, with runs that go any way runs can go.

Two replicas take turns and die in the middle of a pass; workers report, crash, get lost and wake up late; people edit
everything that may be edited. Whatever the order: the counts add up, no cap is passed by a hand-out, a success stays
one success, and in the end everything ends.
"""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flowstone.backfill.request import LeasedError
from flowstone.backfill.standing import Standing
from flowstone.db.connection import Pool
from flowstone.db.ledger import Ledger
from flowstone.errors import LedgerBusy
from flowstone.executor.port import Ended, Running
from tests.postgres.conftest import Place
from tests.postgres.scripted import DiedError, Run, Story

KEYS = [f"k{number:02d}" for number in range(12)]
PATIENCE = 80
"""Passes within which everything ends once nobody interferes: three attempts each for twelve keys, one at a time."""

_clusters = itertools.count(1)

ENDS = {
    "exit 0": Ended(succeeded=True, exit_code=0),
    "crash": Ended(succeeded=False, exit_code=137, reason="OOMKilled"),
    "ledger lost": Ended(succeeded=False, exit_code=75, positions=()),
    "exit 75": Ended(succeeded=False, exit_code=75),
    "disrupted": Ended(succeeded=False, disrupted=True),
}

BUDGETS = [None, {"count": 0}, {"count": 2}, {"percent": 25}, {"count": 1, "window": 3}]

picks = st.integers(0, 100)


class EngineMachine(RuleBasedStateMachine):
    """One backfill, two replicas, and all that can happen to them."""

    def __init__(self, place: Place, pool: Pool) -> None:
        super().__init__()
        self.place = place
        self.ledger = Ledger(pool, cluster=f"cluster-{next(_clusters)}")
        self.reported: Counter[str] = Counter()
        self.succeeded: set[str] = set()
        self.tokens = 0
        self.planned = False

    @initialize(parallel=st.integers(1, 3), size=st.integers(1, 5), limit=st.integers(0, 1))
    def begin(self, parallel: int, size: int, limit: int) -> None:
        """A backfill over twelve keys, in a cluster of its own."""
        uid = str(uuid.uuid4())
        spec = {"maxParallel": parallel, "batchSize": size, "retry": {"limit": limit, "backoffSeconds": 0}}
        self.story = Story(self.ledger, self.place, uid, KEYS, spec)

    # -- replicas

    @rule(owner=st.sampled_from(["one", "two"]), dies=st.sampled_from(["", "", "", "before", "after"]))
    def reconcile(self, owner: str, dies: str) -> None:
        """A replica makes a pass, or dies in it; then its lease runs out at some time."""
        self.story.executor.dies = dies
        before = self.fences()
        try:
            self.step(owner)
        except (DiedError, LeasedError, LedgerBusy):
            self.ledger.release_lease(self.story.uid, owner)
        self.story.executor.dies = ""
        self.planned = True
        self.judge_hand_outs(self.fences() - before)

    def step(self, owner: str) -> Standing:
        """One pass."""
        self.story.owner = owner
        return self.story.step()

    def fences(self) -> set[int]:
        """All batches ever."""
        rows = self.place.all("SELECT fence FROM flowstone.batch WHERE backfill = %s", self.story.uid)
        return {fence for (fence,) in rows}

    def judge_hand_outs(self, new: set[int]) -> None:
        """What was handed out kept to the cap; what is halted hands nothing out."""
        spec = self.story.spec
        if new:
            assert len(self.ledger.open_batches(self.story.uid)) <= spec["maxParallel"]
        if spec.get("suspend") or spec.get("cancel"):
            assert new == set()

    # -- workers

    def going(self) -> list[Run]:
        """Runs under way."""
        return self.story.executor.going

    def pick(self, pick: int) -> Run:
        """One of the runs under way."""
        return self.going()[pick % len(self.going())]

    @precondition(lambda self: self.going())
    @rule(pick=picks, error=st.sampled_from([None, None, "ValueError: 7"]))
    def report(self, pick: int, error: str | None) -> None:
        """A worker reports the next partition of its batch."""
        run = self.pick(pick)
        for partition in self.story.worker.pending(run.batch)[:1]:
            self.say(run, partition, error)

    def say(self, run: Run, partition: str, error: str | None = None) -> None:
        """Report, and remember the successes that were taken."""
        taken = self.story.worker.report(run.batch, partition, error)
        if taken and error is None:
            self.reported[partition] += 1

    @precondition(lambda self: self.story.executor.launched)
    @rule(pick=picks)
    def wake_up_late(self, pick: int) -> None:
        """A worker of any batch there ever was tries to report all it once had as done."""
        launched = self.story.executor.launched
        batch = launched[pick % len(launched)]
        for partition in batch.partitions:
            self.say(Run(batch, "late"), partition)

    @precondition(lambda self: self.going())
    @rule(pick=picks, how=st.sampled_from(sorted(ENDS)))
    def end(self, pick: int, how: str) -> None:
        """A run ends, with or without all of its reports."""
        self.pick(pick).state = ENDS[how]

    @precondition(lambda self: self.going())
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        """The machine of a run does not answer any more."""
        self.pick(pick).state = Running(ready=True, stopping=True, lost=True)

    @precondition(lambda self: self.story.executor.runs)
    @rule(pick=picks)
    def vanish(self, pick: int) -> None:
        """Somebody deletes a run and all its traces."""
        runs = self.story.executor.runs
        del runs[sorted(runs)[pick % len(runs)]]

    @rule()
    def stop_what_shall_stop(self) -> None:
        """Runs that were asked to stop are over."""
        self.story.stopped()

    # -- people

    @rule(parallel=st.integers(1, 4), size=st.integers(1, 5), order=st.sampled_from(["Ascending", "Descending"]))
    def edit_pace(self, parallel: int, size: int, order: str) -> None:
        """Caps up and down, batches longer and shorter, from the other end."""
        self.story.edit(maxParallel=parallel, batchSize=size, order=order)

    @rule(suspend=st.sampled_from([None, None, "Drain", "Kill"]))
    def edit_suspend(self, suspend: str | None) -> None:
        """Suspend, or go on."""
        self.story.edit(suspend=suspend)

    @rule(budget=st.sampled_from(BUDGETS))
    def edit_budget(self, budget: dict[str, int] | None) -> None:
        """Another failure budget, or none."""
        self.story.edit(failureBudget=budget)

    @rule(field=st.sampled_from(["resume", "retryFailed"]))
    def new_token(self, field: str) -> None:
        """A new token."""
        self.tokens += 1
        self.story.edit(**{field: f"token-{self.tokens}"})

    @precondition(lambda self: self.tokens > 3)
    @rule()
    def cancel(self) -> None:
        """Somebody has had enough."""
        self.story.edit(cancel=True)

    # -- what holds at any time

    @invariant()
    def counts_add_up(self) -> None:
        """The six counts are the total at every step."""
        if not self.planned:
            return
        counts = self.ledger.counts(self.story.uid)
        assert counts.total == len(KEYS)
        assert counts.open + counts.finished == counts.total

    @invariant()
    def a_success_is_one_success(self) -> None:
        """No report of success was taken twice, and what has succeeded stays so."""
        assert max(self.reported.values(), default=0) <= 1
        if not self.planned:
            return
        now = {partition for partition, state in self.story.states().items() if state == "succeeded"}
        assert self.succeeded <= now
        assert {partition for partition, number in self.reported.items() if number} <= now
        self.succeeded = now

    def teardown(self) -> None:
        """Left alone, with runs that do their work, everything ends."""
        if not hasattr(self, "story"):
            return
        self.story.edit(suspend=None, failureBudget=None)
        self.story.executor.digest = "digest-2"  # an edited template is tried at once, however often runs had vanished
        self.ledger.release_lease(self.story.uid, "one")
        for _ in range(PATIENCE):
            try:
                standing = self.step("two")
            except LedgerBusy:
                continue
            if standing.finished:
                break
            self.finish_runs()
        assert standing.finished, standing
        counts = self.ledger.counts(self.story.uid)
        assert (counts.open, self.ledger.open_batches(self.story.uid)) == (0, [])
        self.a_success_is_one_success()

    def finish_runs(self) -> None:
        """Lost runs are taken away, stopping ones stop, the others do all they have."""
        self.story.stopped()
        for name, run in list(self.story.executor.runs.items()):
            if isinstance(run.state, Running) and run.state.lost:
                del self.story.executor.runs[name]
            elif isinstance(run.state, Running):
                for partition in self.story.worker.pending(run.batch):
                    self.say(run, partition)
                run.state = replace(ENDS["exit 0"])


@pytest.mark.parametrize("steps", [12, 40], ids=["short", "long"])
def test_any_order_of_events(place: Place, ledger: Ledger, steps: int) -> None:
    """Short stories find what goes wrong at once, long ones what goes wrong after much else."""
    run_state_machine_as_test(
        lambda: EngineMachine(place, ledger.pool),  # type: ignore[arg-type]  # Hypothesis calls any factory
        settings=settings(
            max_examples=25,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
