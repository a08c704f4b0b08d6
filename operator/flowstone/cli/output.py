"""How commands answer: for people, or as YAML, JSON or a name for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console

from flowstone.cli import view

Json = Mapping[str, Any]


class Output(StrEnum):
    """The forms of an answer."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


WIDEST = 10_000
"""Characters of a line that nobody looks at in a terminal, where a name that is cut or wrapped is none."""


def console(*, stderr: bool = False) -> Console:
    """A console that does not guess colours for numbers and paths, nor in a pipe or a file a width."""
    made = Console(highlight=False, stderr=stderr)
    if not made.file.isatty():
        made.width = WIDEST
    return made


def show(resource: Json, output: Output) -> None:
    """Print one Backfill."""
    if output is Output.TABLE:
        console().print(view.summary(resource, datetime.now(UTC)))
    else:
        sys.stdout.write(_machine(resource, [resource], output))


def show_all(resources: Sequence[Json], output: Output) -> None:
    """Print several Backfills; as JSON or YAML they are one List."""
    if output is Output.TABLE and not resources:
        console().print("no Backfills here; -A looks in all namespaces", style="dim")
    elif output is Output.TABLE:
        on = console()
        on.print(view.listing(resources, datetime.now(UTC), on.width))
    else:
        write_all(resources, output)


def write_all(resources: Sequence[Json], output: Output) -> None:
    """Print resources of any kind for a program; as JSON or YAML they are one List."""
    whole = {"apiVersion": "v1", "kind": "List", "items": list(resources)}
    sys.stdout.write(_machine(whole, resources, output))


def _machine(whole: Json, resources: Sequence[Json], output: Output) -> str:
    if output is Output.JSON:
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    if output is Output.YAML:
        return yaml.safe_dump(dict(whole), sort_keys=False, allow_unicode=True)
    return "".join(f"{one['kind'].lower()}.flowstone.dev/{one['metadata']['name']}\n" for one in resources)
