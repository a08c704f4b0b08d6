"""Whatever status the story composes is one that the CRD accepts, within 16 KiB."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from flowstone.api.backfill_status import BackfillStatus
from flowstone.api.fit import LIMIT, cut_to, fitted, size
from flowstone.backfill.records import Counts, Failure
from flowstone.backfill.standing import Stand, Standing
from flowstone.backfill.status import Details, Report, compose

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)

PIECES = st.sampled_from(["", "a", "ä", "\U0001f4a5", "\\", '"', "\x00", "line\n"])
TEXT = st.builds(lambda piece, times: piece * times, PIECES, st.integers(0, 3_000))
COUNT = st.integers(0, 10**12)
KEY = st.builds(lambda piece, times: piece * times, st.sampled_from(["a", "ä", "\U0001f4a5"]), st.integers(1, 128))
FAILURES = st.lists(st.builds(Failure, KEY, TEXT, st.just("job-" + "x" * 59), st.integers(0, 101)), max_size=15)
RATE = st.none() | st.floats(0.001, 1e6)


def counted(queued: int, running: int, succeeded: int, failed: int, skipped: int, cancelled: int) -> Counts:
    """Counts that add up."""
    states = (queued, running, succeeded, failed, skipped, cancelled)
    return Counts(sum(states), *states)


REPORTS = st.builds(
    Report,
    standing=st.builds(Standing, st.sampled_from(Stand), st.sampled_from(["Running", "ImagePull"]), TEXT),
    counts=st.none() | st.builds(counted, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT),
    generation=st.integers(1, 2**40),
    ready_when=st.sampled_from(["Accepted", "Finished"]),
    delivery=st.sampled_from([None, "ExactlyOnce", "AtLeastOnce"]),
    active_batches=st.integers(0, 10_000),
    details=st.none() | st.builds(Details, FAILURES, RATE, TEXT, TEXT),
)


@given(REPORTS)
def test_composed_status_is_accepted_and_read_back(report: Report) -> None:
    """Each field that the story writes is in the model, within its bounds, and comes back as it was written."""
    written = compose(report, {}, NOW)
    assert BackfillStatus.model_validate(written, by_alias=True, by_name=False).to_dict() == {"failures": [], **written}


@given(REPORTS)
def test_composed_status_has_at_most_16_kib(report: Report) -> None:
    """However long errors, messages and intervals are, the status stays below 16 KiB of JSON."""
    before = compose(report, {}, NOW - timedelta(hours=1))
    written = compose(report, before, NOW)
    assert len(json.dumps(written)) <= LIMIT


@given(TEXT, st.integers(20, 3_000))
def test_cut_text_is_the_longest_beginning_that_fits(text: str, room: int) -> None:
    """A text that has room stays; another one keeps as much of its beginning as has room, and says so."""
    cut = cut_to(text, room)
    assert size(cut) <= room
    if size(text) <= room:
        assert cut == text
    else:
        kept = cut.removesuffix("…")
        assert text.startswith(kept)
        assert size(text[: len(kept) + 1] + "…") > room


def test_status_that_fits_stays_as_it_is() -> None:
    """Nothing is cut where there is room."""
    status = {"conditions": [{"type": "Ready", "message": "m" * 10_000}], "failures": []}
    assert fitted(status) == status


def test_failures_are_left_out_when_keys_alone_are_too_long() -> None:
    """Keys are never cut, for a cut key would be another one; failures are left out at the end instead."""
    failures = [{"partition": "\U0001f4a5" * 128, "error": "e" * 9_000, "job": "j", "attempts": 3} for _ in range(20)]
    kept = fitted({"failures": failures})["failures"]
    assert size({"failures": kept}) <= LIMIT
    assert 5 <= len(kept) < 20
    assert {failure["partition"] for failure in kept} == {"\U0001f4a5" * 128}
