"""Exit codes, waiting, and what commands do without a cluster."""

import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flowstone.cli.app import main
from flowstone.cli.exits import Exit, of_backfill, of_error
from flowstone.cli.manifests import request
from flowstone.cli.service import patiently
from flowstone.cli.steering import resumption
from flowstone.cli.watching import picture, wait
from flowstone.errors import (
    FlowStoneError,
    InvalidPartition,
    InvalidSpec,
    KubernetesRefused,
    KubernetesUnavailable,
    LedgerRefused,
    LedgerUnavailable,
    SchemaNotCompatible,
    TenantUnknown,
)
from tests.unit.cli.api_server import serving

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def state(phase: str, *, generation: int = 1, progress: int = 0, **conditions: str) -> dict[str, Any]:
    """A Backfill in this phase, with these conditions."""
    return {
        "metadata": {"name": "year", "namespace": "team", "generation": generation, "creationTimestamp": None},
        "spec": {"asset": "report"},
        "status": {
            "observedGeneration": 1,
            "phase": phase,
            "progress": progress,
            "conditions": [{"type": kind, "status": truth} for kind, truth in conditions.items()],
        },
    }


RUNNING = state("Running", Finished="False", Ready="True")
SUCCEEDED = state("Succeeded", Finished="True", Succeeded="True")


def ticking(seconds: float) -> Callable[[], datetime]:
    """A clock that moves on by so many seconds each time it is read."""
    moments = iter(START + timedelta(seconds=seconds * n) for n in range(1000))
    return lambda: next(moments)


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        (SUCCEEDED, Exit.OK),
        (state("PartlyFailed", Finished="True", Stalled="True"), Exit.FAILED),
        (state("Failed", Finished="True", Stalled="True"), Exit.FAILED),
        (state("Cancelled", Finished="True"), Exit.CANCELLED),
        (state("Blocked", Finished="False", Stalled="True"), Exit.FAILED),
        (state("Blocked", Finished="False", Blocked="True"), None),
        (RUNNING, None),
        (state("Succeeded", generation=2, Finished="True"), None),
        ({"metadata": {"generation": 1}}, None),
    ],
)
def test_exit_code_of_a_backfill(resource: dict[str, Any], code: Exit | None) -> None:
    """Over, or stalled, has a code; blocked may still pass; a status about an older spec says nothing."""
    assert of_backfill(resource) is code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TenantUnknown("not registered"), 1),
        (InvalidSpec("spec.asset", "x", "write a name"), 2),
        (InvalidPartition("no key"), 2),
        (KubernetesRefused(400, "BadRequest", "no such field"), 2),
        (KubernetesRefused(422, "Invalid", "too small"), 2),
        (KubernetesUnavailable("no answer"), 3),
        (LedgerUnavailable("no answer"), 3),
        (LedgerRefused("no right"), 3),
        (SchemaNotCompatible(0, 1), 3),
        (KubernetesRefused(403, "Forbidden", "no right"), 4),
        (KubernetesRefused(404, "NotFound", "not there"), 4),
        (KubernetesRefused(409, "Conflict", "somebody else's"), 4),
    ],
)
def test_exit_code_of_an_error(error: FlowStoneError, code: int) -> None:
    """A script can tell its own mistake from a cluster that is away and from one that said no."""
    assert of_error(error) == code


DOCS = Path(__file__).parents[3] / "docs"


def table(page: str, heading: str) -> set[int]:
    """The codes that a page has in the first table below a heading."""
    below = (DOCS / page).read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {int(code) for code in re.findall(r"^\| (\d+) \|", below, re.MULTILINE)}


def test_every_code_is_in_the_docs_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Who looks for a code finds it in either place, and none that is never used."""
    assert table("operations.md", "Exit codes of `flowstone`") == set(Exit)
    assert main(["--help"]) == 0
    notes = capsys.readouterr().out.split("Exit codes")[1]
    assert {int(code) for code in re.findall(r"^ *(\d+) ", notes, re.MULTILINE)} == set(Exit)


def test_the_codes_of_local_mode_are_among_them() -> None:
    """Local mode asks no cluster and has no --timeout, so it has neither 4 nor 6."""
    assert table("local.md", "Stopping") == set(Exit) - {Exit.REFUSED, Exit.TIMEOUT}


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """Who stops waiting has stopped nothing else."""

    def answer(verb: str, path: str) -> tuple[int, list[dict[str, Any]]]:
        if "watch=true" in path:
            os.kill(os.getpid(), signal.SIGINT)
        running = {**RUNNING, "metadata": {**RUNNING["metadata"], "uid": "1"}}
        return 200, [{"kind": "List", "metadata": {"resourceVersion": "7"}, "items": [running]}]

    with serving(answer, tmp_path) as kubeconfig:
        assert main(["backfill", "watch", "year", "--kubeconfig", kubeconfig]) == 130


def test_waiting_ends_with_the_backfill() -> None:
    """Every state is shown, and nothing is read after the last one."""
    seen: list[str] = []

    def states() -> Iterator[dict[str, Any]]:
        yield from (RUNNING, RUNNING, SUCCEEDED)
        raise AssertionError("read on after the end")

    code = wait(states(), lambda one: seen.append(one["status"]["phase"]), until=None, clock=ticking(1))
    assert (code, seen) == (Exit.OK, ["Running", "Running", "Succeeded"])


def test_waiting_gives_up_in_time() -> None:
    """After the time given the Backfill goes on, and the exit code says that it was not finished."""
    until = START + timedelta(seconds=5)
    assert wait([RUNNING] * 50, lambda _: None, until=until, clock=ticking(2)) is Exit.TIMEOUT


def test_waiting_for_a_deleted_backfill_ends() -> None:
    """The states end when the resource is gone, which says nothing of how it ended."""
    assert wait([RUNNING], lambda _: None, until=None, clock=ticking(1)) is None


def test_a_log_gets_a_line_per_change_only() -> None:
    """In a pipe there is a line for each phase and each five percent, not one per event."""
    file = io.StringIO()
    with picture(Console(file=file, width=200)) as show:
        for percent in (0, 1, 2, 5, 6, 11):
            show(state("Running", progress=percent))
        show(state("Succeeded", progress=100))
    assert [line.split()[1:3] for line in file.getvalue().splitlines()] == [
        ["Running", "0"],
        ["Running", "5"],
        ["Running", "11"],
        ["Succeeded", "100"],
    ]


def test_migration_waits_for_a_database_that_is_not_there_yet() -> None:
    """It is tried again each second until it answers."""
    answers = iter([LedgerUnavailable("starting"), LedgerUnavailable("starting"), None])
    said: list[str] = []
    slept: list[float] = []

    def step() -> None:
        if error := next(answers):
            raise error

    patiently(
        step, seconds=10, waiting=lambda e: said.append(str(e)), clock=iter(range(99)).__next__, sleep=slept.append
    )
    assert (said, slept) == (["starting", "starting"], [1.0, 1.0])


def test_migration_does_not_wait_for_ever() -> None:
    """After the time given the error is told, so that the pod fails visibly."""

    def step() -> None:
        raise LedgerUnavailable("away")

    with pytest.raises(LedgerUnavailable, match="away"):
        patiently(step, seconds=3, waiting=lambda _: None, clock=iter(range(99)).__next__, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "the file is no YAML"),
        ("- 1", "each document is an object"),
        ("kind: Backfill\nmetadata: {name: x}", "it holds more than Backfills and Assets and Tenants"),
        ("apiVersion: flowstone.dev/v1alpha1\nkind: Asset\nmetadata: {name: x}", "it has 0"),
        ("apiVersion: flowstone.dev/v1alpha1\nkind: Backfill\nmetadata: {}", "give the Backfill a name"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    """The message says what is wrong with the file."""
    file = tmp_path / "backfill.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match=words):
        request(file)


def test_assets_may_stand_beside_the_backfill(tmp_path: Path) -> None:
    """A file with Asset and Backfill, as in the examples, is one request."""
    file = tmp_path / "both.yaml"
    head = "apiVersion: flowstone.dev/v1alpha1\n"
    file.write_text(
        f"{head}kind: Asset\nmetadata: {{name: a}}\n---\n{head}kind: Backfill\nmetadata: {{name: b}}\n---\n"
    )
    asked = request(file)
    assert (asked.name, asked.namespace, [one["metadata"]["name"] for one in asked.assets]) == ("b", None, ["a"])


def test_a_missing_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the file's name in the message."""
    assert main(["backfill", "run", "-f", "no-such-file.yaml"]) == 2
    assert "no-such-file.yaml" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the word that was not understood."""
    assert main(["backfill", "explode"]) == 2
    assert "explode" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, with the address and the cause, not a stack trace."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}],"
        " contexts: [{name: c, context: {cluster: c, user: u}}]}"
    )
    assert main(["backfill", "status", "--kubeconfig", str(kubeconfig)]) == 3
    error = capsys.readouterr().err.replace("\n", " ")
    assert "127.0.0.1:9" in error
    assert "Connection refused" in error


def test_resuming_forgives_a_budget_only_when_it_is_what_stopped_it() -> None:
    """A Backfill that was merely paused keeps counting its failures."""
    paused = state("Suspended", Suspended="True")
    stopped = state("Suspended", Suspended="True", Stalled="True")
    assert resumption(paused, START) == {"suspend": None}
    assert resumption(stopped, START) == {"suspend": None, "resume": "cli-20261124T120000.000000"}
