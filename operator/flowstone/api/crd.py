"""From the models to CustomResourceDefinitions: `python -m flowstone.api.crd [directory]` writes `crds/*.yaml`.

A CRD wants a *structural* schema: no references, no alternatives, no null, and either named properties or free ones.
pydantic writes JSON Schema with all of these; `structural` takes them out again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flowstone.api.base import API_VERSION, GROUP, VERSION, Model
from flowstone.api.kinds import EXPORTED, Column, Kind
from flowstone.api.rules import validations

Schema = dict[str, Any]

MAX_BYTES = 262_144
"""What an annotation may hold, and so a CRD that is applied by `kubectl apply` without --server-side."""

_NOT_STRUCTURAL = frozenset({"title", "$ref", "$defs", "anyOf", "const"})
_FIRST = ("description", "type", "default", "enum")
_HEADER = "# Made from the models by `python -m flowstone.api.crd`; change those, not this file.\n"


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Return a JSON Schema of pydantic as a structural OpenAPI v3 schema.

    Args:
        schema: The schema, or any part of it.
        definitions: What its references point to, by name.
    """
    merged = _without_reference(schema, definitions)
    node = {key: value for key, value in merged.items() if _stays(key, value)}
    if "properties" in node:
        node["properties"] = {name: structural(part, definitions) for name, part in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in node:
            node[key] = structural(node[key], definitions)
    return _tidied(node)


def _without_reference(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Put a reference's target, or the one alternative that is not null, in its place; what stands beside it wins."""
    target: Mapping[str, Any] = {}
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
    elif "anyOf" in schema:
        (target,) = (part for part in schema["anyOf"] if part.get("type") != "null")
    else:
        return dict(schema)
    beside = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
    return _without_reference(target, definitions) | beside


def _stays(key: str, value: Any) -> bool:
    refuses_unknown = key == "additionalProperties" and value is False  # a CRD prunes them; the model refuses them
    return key not in _NOT_STRUCTURAL and not refuses_unknown and not (key == "default" and value is None)


def _tidied(node: Schema) -> Schema:
    """Put what people read first, descriptions on one line, and let an object's default come from its fields."""
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if isinstance(node.get("default"), dict):
        node["default"] = {}
    if node.get("default") == []:
        del node["default"]
    return _ordered(node)


def _ordered(node: Schema) -> Schema:
    first = {key: node[key] for key in _FIRST if key in node}
    return first | node


def model_schema(model: type[Model]) -> Schema:
    """Return the structural schema of a model."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return structural(schema, schema.get("$defs", {}))


def resource_schema(kind: Kind) -> Schema:
    """Return the schema of a whole resource of this kind."""
    # kstatus and `kubectl wait` read a fresh resource as "in progress" only because of this default.
    status = model_schema(kind.status) | {"default": {"observedGeneration": -1}}
    schema: Schema = {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"Always {API_VERSION}.", "type": "string"},
            "kind": {"description": f"Always {kind.name}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": model_schema(kind.spec),
            "status": _ordered(status),
        },
    }
    return schema | (validations(*kind.rules) if kind.rules else {})


def _column(column: Column) -> Schema:
    entry: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return entry | ({"priority": 1} if column.wide else {})


def crd(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of this kind."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "schema": {"openAPIV3Schema": resource_schema(kind)},
    }
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.singular,
        "shortNames": [kind.short],
        "categories": ["flowstone"],  # not `all`: `kubectl delete all --all` would delete assets and backfills
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {"group": GROUP, "scope": kind.scope, "names": names, "versions": [version]},
    }


class _Plain(yaml.SafeDumper):
    """Writes equal parts out again instead of YAML's anchors, which few readers of a CRD know."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def to_yaml(kind: Kind) -> str:
    """Return the CRD of this kind as the text of its file."""
    text = yaml.dump(crd(kind), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    return _HEADER + str(text)


def files(kinds: Iterable[Kind] = EXPORTED) -> dict[str, str]:
    """Return the text of every CRD file, by the file's name."""
    return {f"{GROUP}_{kind.plural}.yaml": to_yaml(kind) for kind in kinds}


def main(arguments: list[str]) -> None:
    """Write the files into the named directory, or into `crds`."""
    directory = Path(arguments[0] if arguments else "crds")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (directory / name).write_text(text, encoding="utf-8")
        print(directory / name)


if __name__ == "__main__":
    main(sys.argv[1:])
