"""Reading the YAML that people write: which documents are in a file, and what FlowStone makes of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flowstone.api.base import API_VERSION
from flowstone.errors import InvalidSpec

Json = dict[str, Any]


def read(file: Path) -> list[Json]:
    """The documents of a YAML file, or of the standard input for `-`.

    Raises:
        InvalidSpec: it cannot be read, or is no YAML, or holds something else than objects.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec("-f", str(file), f"the file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidSpec("-f", str(file), f"the file is no YAML: {error}") from error
    for one in documents:
        if not isinstance(one, dict) or not isinstance(one.get("metadata"), Mapping):
            raise InvalidSpec("-f", str(file), "each document is an object with kind and metadata")
    return documents


def one_backfill(file: Path) -> Json:
    """The one Backfill of a file; other documents of FlowStone may stand beside it.

    Raises:
        InvalidSpec: there is none, or there are several.
    """
    found = of_kind(read(file), "Backfill")
    if len(found) != 1:
        raise InvalidSpec("-f", str(file), f"name a file with one Backfill ({API_VERSION}); it has {len(found)}")
    if not found[0]["metadata"].get("name"):
        raise InvalidSpec("metadata.name", None, "give the Backfill a name")
    return found[0]


def of_kind(documents: list[Json], kind: str) -> list[Json]:
    """The documents of one of FlowStone's kinds."""
    return [one for one in documents if one.get("kind") == kind and one.get("apiVersion") == API_VERSION]
