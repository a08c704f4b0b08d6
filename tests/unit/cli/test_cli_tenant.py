"""What people see of Tenants."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from flowstone.cli.tenant import show

LONG = "a-tenant-whose-name-has-all-the-sixty-three-characters-it-may-00"


def tenant(name: str, spec: dict[str, Any] | None = None, **conditions: str) -> dict[str, Any]:
    """A Tenant with these conditions."""
    found = [{"type": kind, "status": status} for kind, status in conditions.items()]
    return {
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": {"namespaces": ["red"], **(spec or {})},
        "status": {"conditions": found},
    }


def lines(*tenants: dict[str, Any], width: int = 140) -> list[list[str]]:
    """The words of each line that a terminal shows."""
    file = io.StringIO()
    show(tenants, Console(width=width, file=file))
    return [line.split() for line in file.getvalue().splitlines()]


def test_each_tenant_has_a_line() -> None:
    """Name and id, what was left out as it is then, and each condition, or a dash where it is not known yet."""
    spec = {"id": "UA", "tier": "premium", "isolation": "Database", "namespaces": ["red", "blue"]}
    shown = lines(
        tenant("ua", spec, Ready="True", Hardened="False", IsolationVerified="Unknown"), {**tenant("dl"), "status": {}}
    )
    assert shown == [
        ["NAME", "ID", "TIER", "ISOLATION", "READY", "HARDENED", "VERIFIED", "NAMESPACES"],
        ["ua", "UA", "premium", "Database", "True", "False", "Unknown", "red,", "blue"],
        ["dl", "dl", "basic", "Shared", "-", "-", "-", "red"],
    ]


@pytest.mark.parametrize("width", [20, 80])
def test_no_name_is_cut(width: int) -> None:
    """However narrow the terminal or the pipe, each Tenant is one line, with whole names."""
    namespaces = [f"a-namespace-whose-name-has-sixty-three-characters-of-its-own-{n:03}" for n in range(64)]
    long, short = lines(tenant(LONG, {"namespaces": namespaces}), tenant("dl"), width=width)[1:]
    assert (long[0], short[0]) == (LONG, "dl")
    assert "".join(long[7:]).split(",") == namespaces


def test_without_tenants_it_says_so() -> None:
    """An empty table would be a riddle."""
    assert lines() == [["no", "Tenants", "here"]]
