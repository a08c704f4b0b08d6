"""Reading the YAML that people write: which documents are in a file, and what FlowStone makes of them."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowstone.api.base import API_VERSION
from flowstone.errors import InvalidSpec

Json = dict[str, Any]

_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """As kubectl reads: a day or an instant without quotes is text, and a key that stands twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; of two equal keys YAML would take the last, and whoever wrote the first would not know."""
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(file: Path) -> list[Json]:
    """The documents of a YAML file, or of the standard input for `-`.

    Raises:
        InvalidSpec: it cannot be read, or is no YAML, or holds something else than objects.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        documents = [one for one in yaml.load_all(text, Loader=_Loader) if one is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec("-f", str(file), f"the file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidSpec("-f", str(file), f"the file is no YAML: {error}") from error
    for one in documents:
        if not isinstance(one, dict) or not isinstance(one.get("metadata"), Mapping):
            raise InvalidSpec("-f", str(file), "each document is an object with kind and metadata")
    return documents


KINDS = ("Backfill", "Asset", "Tenant")
"""What a file may hold."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a file asks for: one Backfill, and the Assets and Tenants that stand beside it."""

    backfill: Json
    assets: list[Json]
    tenants: list[Json] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The Backfill's name."""
        return str(self.backfill["metadata"]["name"])

    @property
    def asset(self) -> str:
        """The name of the Asset that the Backfill is about.

        Raises:
            InvalidSpec: it names none.
        """
        spec = self.backfill.get("spec")
        name = spec.get("asset") if isinstance(spec, Mapping) else None
        if not isinstance(name, str):
            raise InvalidSpec("spec.asset", name, "name the Asset here")
        return name

    @property
    def namespace(self) -> str | None:
        """The Backfill's namespace, if the file names one."""
        namespace: str | None = self.backfill["metadata"].get("namespace")
        return namespace


def request(file: Path, *, tenants: bool = True) -> Request:
    """The one Backfill of a file and its Assets.

    Args:
        file: A file, or `-` for the standard input.
        tenants: Accept Tenants too.

    Raises:
        InvalidSpec: there is not exactly one Backfill, or there is something that is not FlowStone's.
    """
    documents = read(file)
    ours = {kind: [one for one in documents if _is(one, kind)] for kind in KINDS}
    accepted = [kind for kind in KINDS if tenants or kind != "Tenant"]
    if len(documents) != sum(len(ours[kind]) for kind in accepted):
        names = " and ".join(f"{kind}s" for kind in accepted)
        raise InvalidSpec("-f", str(file), f"it holds more than {names} of {API_VERSION}: take the rest out of it")
    if len(ours["Backfill"]) != 1:
        raise InvalidSpec(
            "-f", str(file), f"name a file with one Backfill ({API_VERSION}); it has {len(ours['Backfill'])}"
        )
    for one in documents:
        if not one["metadata"].get("name"):
            raise InvalidSpec("metadata.name", None, f"give the {one['kind']} a name")
    return Request(ours["Backfill"][0], ours["Asset"], ours["Tenant"])


def assets_of(file: Path) -> list[Json]:
    """The Assets of a file, whatever else is in it."""
    return [one for one in read(file) if _is(one, "Asset")]


def _is(document: Json, kind: str) -> bool:
    return document.get("kind") == kind and document.get("apiVersion") == API_VERSION
