"""What `run` says when the API server takes a manifest for wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowstone.cli.app import main
from flowstone.cli.cluster import misfit
from tests.unit.cli.api_server import refusal, serving

Json = dict[str, Any]

APPLY = "failed to create typed patch object (team/b; flowstone.dev/v1alpha1, Kind=Backfill): "
NO_SUCH = "no such field: remove it, correct its spelling, or upgrade the operator"

MANIFESTS = """
{apiVersion: flowstone.dev/v1alpha1, kind: Asset, metadata: {name: a}, spec: {}}
---
{apiVersion: flowstone.dev/v1alpha1, kind: Backfill, metadata: {name: b}, spec: {asset: a, maxParalel: 3}}
"""


def run(folder: Path, status: int, sent: Json) -> tuple[int, list[str]]:
    """The exit code where the server has something against the Backfill, and the paths that were asked for."""
    asked: list[str] = []

    def answer(verb: str, path: str) -> tuple[int, list[Json]]:
        asked.append(path)
        return (status, [sent]) if "/backfills/" in path else (200, [{}])

    (folder / "b.yaml").write_text(MANIFESTS)
    with serving(answer, folder) as kubeconfig:
        return main(["backfill", "run", "-f", str(folder / "b.yaml"), "--kubeconfig", kubeconfig]), asked


def test_an_unknown_field_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 with the field's name, though the server calls it an error of its own; nothing was changed."""
    code, asked = run(tmp_path, 500, refusal("", f"{APPLY}.spec.maxParalel: field not declared in schema"))
    assert code == 2
    assert f"Backfill b: spec.maxParalel: {NO_SUCH}\n" in capsys.readouterr().err
    assert len(asked) == 2
    assert [path for path in asked if "dryRun=All" not in path] == []


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [(400, "BadRequest", 2), (422, "Invalid", 2), (403, "Forbidden", 4), (409, "Conflict", 4), (500, "", 3)],
)
def test_other_answers_keep_their_words(
    status: int, reason: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What makes no sense is 2, what is not allowed or in conflict 4, and a server that is not well 3."""
    assert run(tmp_path, status, refusal(reason, "the server's words"))[0] == code
    assert "the server's words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (
            "errors:\n  .spec.limt: field not declared in schema\n  .spec.retry: expected map, got &{3}",
            f"Backfill b: spec.limt: {NO_SUCH}; spec.retry: expected map, got 3",
        ),
        (
            ".spec.keys[2]: expected string, got &value.valueUnstructured{Value:3}",
            "Backfill b: spec.keys[2]: expected string, got 3",
        ),
    ],
    ids=["two at once", "a value of Go"],
)
def test_faults_of_a_manifest_are_said_plainly(faults: str, words: str) -> None:
    """All faults are named, by their fields, with values as they stand in the file."""
    assert misfit(APPLY + faults) == words


def test_what_is_wrong_with_the_live_object_is_the_servers() -> None:
    """Only the manifest that was sent is the user's to mend."""
    assert (
        misfit("failed to create typed live object (team/b; v1, Kind=B): .spec.x: field not declared in schema") == ""
    )
