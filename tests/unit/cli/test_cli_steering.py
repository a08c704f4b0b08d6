"""What `pause`, `resume`, `retry` and `cancel` say when there is nothing to steer any more."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.cli.steering import Verb, futile, remark

VERBS: tuple[Verb, ...] = ("pause", "resume", "retry", "cancel")

Json = dict[str, Any]


def backfill(phase: str, *, finished: bool = True, failed: int = 0, **spec: object) -> Json:
    """A Backfill in this phase."""
    return {
        "metadata": {"name": "b", "namespace": "n", "generation": 2},
        "spec": {"asset": "a", **spec},
        "status": {
            "observedGeneration": 2,
            "phase": phase,
            "counts": {"total": 9, "failed": failed},
            "conditions": [{"type": "Finished", "status": str(finished)}],
        },
    }


@pytest.mark.parametrize("verb", VERBS)
def test_one_that_is_under_way_is_steered(verb: Verb) -> None:
    """Nothing is refused while something can still happen."""
    assert futile(backfill("Running", finished=False), verb) == ""
    assert futile({"metadata": {"name": "b", "namespace": "n", "generation": 1}, "spec": {}}, verb) == ""


@pytest.mark.parametrize("verb", VERBS)
def test_a_status_of_an_older_spec_says_nothing(verb: Verb) -> None:
    """A Backfill that was just opened again by `retry` still looks finished for a moment."""
    edited = backfill("Failed", failed=3)
    edited["metadata"]["generation"] = 3
    assert futile(edited, verb) == ""


@pytest.mark.parametrize("verb", VERBS)
def test_success_is_the_end(verb: Verb) -> None:
    """Nothing changes it; only another Backfill does something."""
    words = f"it is over (Succeeded), so there is nothing to {verb}: "
    assert futile(backfill("Succeeded"), verb).startswith(words + "another Backfill runs what is missing")


def test_failed_partitions_can_be_tried_again() -> None:
    """Whatever else is asked of it, `retry` is what does something."""
    over = backfill("PartlyFailed", failed=3)
    assert futile(over, "retry") == ""
    for verb in ("pause", "resume", "cancel"):
        assert "`flowstone backfill retry b -n n` tries what failed again (3)" in futile(over, verb)


def test_what_was_cancelled_stays_so() -> None:
    """Even with failed partitions `retry` does nothing; to cancel it twice is no mistake, and is said."""
    cancelled = backfill("Cancelled", failed=3, cancel=True)
    for verb in ("pause", "resume", "retry"):
        assert "with select: Failed what failed" in futile(cancelled, verb)
    assert (futile(cancelled, "cancel"), remark(cancelled, "cancel")) == ("", "it was cancelled before")


def test_what_does_no_harm_is_remarked() -> None:
    """`resume` of what goes on anyhow, and `retry` before anything has failed."""
    running = backfill("Running", finished=False)
    assert remark(running, "resume") == "it was not suspended"
    assert remark(backfill("Running", finished=False, suspend="Drain"), "resume") == ""
    assert remark(running, "retry") == "no partition had failed for good so far"
    assert remark(backfill("Running", finished=False, failed=1), "retry") == ""
    assert [remark(running, verb) for verb in ("pause", "cancel")] == ["", ""]
