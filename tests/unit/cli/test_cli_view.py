"""What people see of a Backfill."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flowstone.cli.app import main
from flowstone.cli.bar import SEGMENTS, bar, legend
from flowstone.cli.view import age, listing, summary, trouble
from tests.unit.cli.api_server import serving

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

COUNTS = st.fixed_dictionaries({state: st.integers(0, 10_000_000) for state in SEGMENTS})


def resource(**status: object) -> dict[str, Any]:
    """A Backfill with this status."""
    return {
        "metadata": {"name": "year", "namespace": "team", "generation": 1, "creationTimestamp": "2026-11-24T11:58:30Z"},
        "spec": {"asset": "report"},
        "status": {"observedGeneration": 1, **status},
    }


def printed(thing: object, width: int = 120) -> str:
    """What a terminal of so many columns shows."""
    file = io.StringIO()
    Console(width=width, file=file).print(thing)
    return file.getvalue()


@given(COUNTS, st.integers(6, 200))
def test_bar_has_its_width_and_shows_every_state(counts: dict[str, int], width: int) -> None:
    """A single failed partition among millions is seen, and the bar never grows."""
    drawn = bar(counts, width)
    colours = {str(span.style).removeprefix("bold ") for span in drawn.spans if span.end > span.start}
    assert len(drawn) == width
    assert {SEGMENTS[state] for state, number in counts.items() if number} <= colours | {"bright_black"}


def test_bar_is_in_proportion() -> None:
    """Half done is half a bar."""
    drawn = bar({"succeeded": 50, "queued": 50}, 60)
    assert [(span.end - span.start) for span in drawn.spans if span.end > span.start] == [30, 30]


def test_legend_leaves_out_zeros() -> None:
    """Only states that occur are named, thousands apart."""
    assert legend({"succeeded": 336776, "failed": 0, "queued": 1}).plain == "336 776 succeeded · 1 queued"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (200, "3m 20s"), (3600, "1h"), (18_600, "5h 10m"), (180_000, "2d 2h")],
)
def test_age_in_two_units(seconds: int, words: str) -> None:
    """Ages are read at a glance."""
    assert age(NOW - timedelta(seconds=seconds), NOW) == words


def test_age_of_a_kubernetes_time() -> None:
    """Times come as the API server writes them."""
    assert age("2026-11-24T11:58:30Z", NOW) == "1m 30s"


def test_summary_names_what_failed_and_why() -> None:
    """The last line of the error stands beside its partition; the lines before it are in the status."""
    status = resource(
        phase="PartlyFailed",
        progress=100,
        counts={"total": 365, "succeeded": 362, "failed": 3},
        failures=[
            {"partition": "2013-02-09", "error": "Traceback\nValueError: no data", "job": "year-1", "attempts": 2}
        ],
        summary={"succeeded": "2013-01-01..2013-02-08 (39)", "failed": "2013-02-09"},
    )
    text = printed(summary(status, NOW))
    assert "team/year  PartlyFailed  asset report · age 1m 30s" in text
    assert "362 succeeded · 3 failed  of 365" in text
    assert "2013-02-09  2         ValueError: no data  year-1" in text
    assert "Traceback" not in text


def test_summary_before_the_operator_has_seen_it() -> None:
    """A Backfill without a status is shown as what it is, without numbers that nobody knows."""
    bare = {"metadata": {"name": "x", "namespace": "y", "creationTimestamp": None}, "spec": {"asset": "a"}}
    assert printed(summary(bare, NOW)).strip() == "y/x  not seen by the operator yet  asset a · age ?"


def test_trouble_is_the_condition_that_asks_for_people() -> None:
    """Blocked=True speaks in its own words; Blocked=False is no trouble."""
    blocked = {"type": "Blocked", "status": "True", "reason": "ImagePull", "message": "no such image"}
    assert printed(trouble(resource(conditions=[blocked]))).strip() == "ImagePull: no such image"
    assert trouble(resource(conditions=[blocked | {"status": "False"}])) is None


def test_listing_has_a_line_each() -> None:
    """Two Backfills, one of them not planned yet."""
    done = resource(phase="Succeeded", progress=100, counts={"total": 5, "succeeded": 5, "failed": 0})
    text = printed(listing([done, resource(phase="Planning")], NOW, 120)).splitlines()
    header = ["NAMESPACE", "NAME", "PHASE", "PROGRESS", "DONE", "TOTAL", "SUCCEEDED", "FAILED", "AGE"]
    assert text[0].split() == header
    assert text[1].split()[:3] == ["team", "year", "Succeeded"]
    assert text[1].split()[-7:] == ["100", "%", "5", "5", "0", "1m", "30s"]
    assert text[2].split() == ["team", "year", "Planning", "1m", "30s"]


LONG = "the-backfill-of-the-whole-year-2013-that-was-begun-in-november"
"""A name of 62 characters, as long as most may be."""


def many(*namespaces: str) -> list[dict[str, Any]]:
    """A Backfill of a long name in each namespace."""
    one = resource(phase="PartlyFailed", progress=100, counts={"total": 365, "succeeded": 362, "failed": 3})
    return [{**one, "metadata": {**one["metadata"], "namespace": name, "name": LONG}} for name in namespaces]


@pytest.mark.parametrize(
    ("width", "header"),
    [
        (142, "NAMESPACE NAME PHASE PROGRESS DONE TOTAL SUCCEEDED FAILED AGE"),
        (141, "NAME PHASE PROGRESS DONE TOTAL SUCCEEDED FAILED AGE"),
        (130, "NAME PHASE DONE TOTAL SUCCEEDED FAILED AGE"),
        (116, "NAME PHASE DONE TOTAL FAILED AGE"),
        (105, "NAME PHASE DONE FAILED AGE"),
        (98, "NAME PHASE DONE FAILED"),
        (83, "NAME PHASE DONE"),
    ],
)
def test_a_narrow_terminal_goes_without_columns(width: int, header: str) -> None:
    """What matters least is left out first, and every line fits as it is."""
    text = printed(listing(many("team", "team"), NOW, width), width).splitlines()
    assert text[0].split() == header.split()
    assert [LONG in line for line in text] == [False, True, True]


def test_namespaces_that_differ_are_kept() -> None:
    """Without its namespace a name of `-A` is none."""
    text = printed(listing(many("team", "other"), NOW, 105), 105).splitlines()
    assert text[0].split() == ["NAMESPACE", "NAME", "PHASE", "DONE", "FAILED"]


@given(st.integers(30, 80))
def test_a_name_that_does_not_fit_goes_on_in_the_next_line(width: int) -> None:
    """However narrow the terminal, all of a name is there."""
    lines = printed(listing(many("team"), NOW, width), width).splitlines()[1:]
    assert "".join(line.split("  ")[0].strip() for line in lines) == LONG


def test_nothing_is_cut_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What reads the list from a pipe gets all columns and whole names, a line for each Backfill."""
    lists = {"kind": "List", "metadata": {}, "items": many("a" * 63, "other")}
    with serving(lambda *_: (200, [lists]), tmp_path) as kubeconfig:
        assert main(["backfill", "status", "-A", "--kubeconfig", kubeconfig]) == 0
    [header, first, second] = capsys.readouterr().out.splitlines()
    assert len(header.split()) == 9
    assert first.split()[:3] == ["a" * 63, LONG, "PartlyFailed"]
    assert second.split()[:2] == ["other", LONG]
