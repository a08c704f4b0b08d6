"""The field reference: `python -m flowstone.api.reference [directory]` writes `docs/reference/*.md` from the CRDs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowstone.api.base import API_VERSION
from flowstone.api.crd import resource_schema
from flowstone.api.kinds import EXPORTED, Kind

Schema = Mapping[str, Any]

_BOUNDS = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minItems", "at least {} of them"),
    ("maxItems", "at most {} of them"),
    ("maxProperties", "at most {} of them"),
    ("maxLength", "at most {} characters"),
)


def fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Yield each field below a schema, depth first: its path, its schema, and whether it is required."""
    for name, part in schema.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        yield below, part, name in schema.get("required", ())
        yield from _inside(part, below)


def _inside(part: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    inner, steps = entries(part)
    yield from fields(inner, path + steps)


def entries(part: Schema) -> tuple[Schema, str]:
    """Return the schema of a list's or map's entries and how a path to them goes on; else the part itself and ""."""
    if "items" in part:
        return part["items"], "[]"
    if isinstance(part.get("additionalProperties"), Mapping):
        return part["additionalProperties"], ".<name>"
    return part, ""


def type_of(part: Schema) -> str:
    """Return the type of a field in words, with its bounds."""
    bounds = [words.format(f"{part[key]:,}") for key, words in _BOUNDS if key in part]
    return ", ".join([_plain_type(part), *bounds])


def _plain_type(part: Schema) -> str:
    if "enum" in part:
        return " \\| ".join(f"`{value}`" for value in part["enum"])
    if "items" in part:
        return f"list of {_plain_type(part['items'])}"
    if isinstance(part.get("additionalProperties"), Mapping):
        return f"map of name to {_plain_type(part['additionalProperties'])}"
    return "instant" if part.get("format") == "date-time" else str(part["type"])


def default_of(part: Schema, *, required: bool) -> str:
    """Return what holds when the field is left out."""
    if required:
        return "required"
    default = part.get("default")
    if default is None or default in ({}, ""):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def page(kind: Kind) -> str:
    """Return the reference of one kind as Markdown."""
    schema = resource_schema(kind)
    scope = "in a namespace" if kind.scope == "Namespaced" else "for the whole cluster"
    lines = [
        f"# {kind.name}",
        "",
        "<!-- Made from the models by `python -m flowstone.api.reference`; change those, not this file. -->",
        "",
        schema["description"],
        "",
        f"`apiVersion: {API_VERSION}`, `kind: {kind.name}`, {scope};"
        f" `kubectl get {kind.plural}`, or `kubectl get {kind.short}`.",
    ]
    for part in ("spec", "status"):
        lines += _section(part, schema["properties"][part])
    lines += ["", "## What the API server refuses", "", "Beside values out of the bounds above:", ""]
    lines += refusals(schema["properties"]["spec"])
    return "\n".join([*lines, ""])


def refusals(spec: Schema) -> list[str]:
    """Return one line for each rule that the API server checks, with the field on which it stands."""
    lines = [_refusal("spec", rule) for rule in _rules(spec)]
    for path, part, _ in fields(spec, "spec"):
        inner, steps = entries(part)
        lines += [_refusal(path, rule) for rule in _rules(part)]
        lines += [_refusal(path + steps, rule) for rule in _rules(inner)] if steps else []
    return lines


def _refusal(path: str, rule: Schema) -> str:
    return f"- `{path}{rule.get('fieldPath', '')}`: {rule['message']}"


def _rules(part: Schema) -> list[Schema]:
    return list(part.get("x-kubernetes-validations", ()))


def _section(name: str, schema: Schema) -> Iterable[str]:
    yield from ("", f"## {name}", "", schema["description"], "")
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for path, part, required in fields(schema, ""):
        default = default_of(part, required=required)
        yield f"| `{path}` | {type_of(part)} | {default} | {part['description'].replace('|', chr(92) + '|')} |"


def pages(kinds: Iterable[Kind] = EXPORTED) -> dict[str, str]:
    """Return the text of every page, by the file's name."""
    return {f"{kind.singular}.md": page(kind) for kind in kinds}


def main(arguments: list[str]) -> None:
    """Write the pages into the named directory, or into `docs/reference`."""
    directory = Path(arguments[0] if arguments else "docs/reference")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")
        print(directory / name)


if __name__ == "__main__":
    main(sys.argv[1:])
