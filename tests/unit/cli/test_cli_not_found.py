"""What commands say when the API server does not know what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowstone.cli.app import main
from tests.unit.cli.api_server import refusal, serving


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[str]:
    """A kubeconfig of a server that has nothing, and says so in its own form."""
    nothing = refusal("NotFound", 'backfills "b" not found [/x]')
    with serving(lambda *_: (404, [nothing]), tmp_path) as file:
        yield file


@pytest.mark.parametrize(
    ("options", "namespace"), [((), "team"), (("-n", "other"), "other")], ids=["the context's", "a named one"]
)
def test_it_says_where_it_looked(
    kubeconfig: str, options: tuple[str, ...], namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most often the Backfill is in another namespace; the server's words are passed on as they are, brackets too."""
    assert main(["backfill", "explain", "b", "--kubeconfig", kubeconfig, *options]) == 4
    error = 'backfills "b" not found [/x]'
    assert f"{error}; looked in namespace {namespace}, -n (--namespace) names another" in capsys.readouterr().err


def test_what_has_no_namespace_is_looked_for_nowhere_else(kubeconfig: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tenants belong to the whole cluster, so no namespace is to blame."""
    assert main(["tenant", "list", "--kubeconfig", kubeconfig]) == 4
    assert "looked in namespace" not in capsys.readouterr().err
