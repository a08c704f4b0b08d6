"""What is said of a Backfill that is deleted, or deleted and made anew, while somebody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowstone.cli.app import main
from tests.unit.cli.api_server import Answer, refusal, serving

Json = dict[str, Any]


def backfill(uid: str) -> Json:
    """A Backfill that runs."""
    made = {"name": "b", "namespace": "team", "uid": uid, "generation": 1, "creationTimestamp": "2026-11-24T12:00:00Z"}
    status = {"observedGeneration": 1, "phase": "Running"}
    return {"kind": "Backfill", "metadata": made, "spec": {"asset": "a"}, "status": status}


def scripted(lists: Sequence[Sequence[Json]], events: Sequence[Json]) -> Answer:
    """A server that lists this and then that, and whose every watch sends these events and is cut off."""
    left = list(lists)

    def answer(verb: str, path: str) -> tuple[int, list[Json]]:
        if "watch=true" in path:
            return 200, list(events)
        if path.endswith("/backfills/b"):
            return 404, [refusal("NotFound", 'backfills.flowstone.dev "b" not found')]
        return 200, [{"kind": "List", "metadata": {"resourceVersion": "7"}, "items": list(left.pop(0))}]

    return answer


OLD, NEW = backfill("1"), backfill("2")
DELETED = {"type": "DELETED", "object": OLD}
ANEW = "another one has its name since 2026-11-24T12:00:00Z: `flowstone backfill watch b -n team` watches that"
STOPPED = "`flowstone backfill run -f FILE` asks for it again"


@pytest.mark.parametrize(
    ("lists", "events", "words"),
    [
        ([[OLD], []], [DELETED], STOPPED),
        ([[OLD], [NEW]], [DELETED], ANEW),
        ([[OLD], [], []], [], STOPPED),
        ([[OLD], [NEW], [NEW]], [], ANEW),
    ],
    ids=["deleted", "made anew", "deleted between two watches", "made anew between two watches"],
)
def test_waiting_ends_in_words_with_exit_code_4(
    lists: Sequence[Sequence[Json]],
    events: Sequence[Json],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody goes on with another Backfill of the same name; what to do next is said, beside what was seen last."""
    with serving(scripted(lists, events), tmp_path) as kubeconfig:
        assert main(["backfill", "watch", "b", "--kubeconfig", kubeconfig]) == 4
    said = capsys.readouterr()
    assert "team/b  Running" in said.out
    assert said.err.startswith("error: Backfill team/b was deleted meanwhile")
    assert words in said.err


def test_what_was_never_there_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is wrong from the start is said in the server's words."""
    with serving(scripted([[]], []), tmp_path) as kubeconfig:
        assert main(["backfill", "watch", "b", "--kubeconfig", kubeconfig]) == 4
    assert '"b" not found; looked in namespace team' in capsys.readouterr().err
