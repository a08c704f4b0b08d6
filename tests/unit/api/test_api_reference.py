"""The field reference in docs/ is made from the same schemas as the CRDs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstone.api.crd import resource_schema
from flowstone.api.kinds import BACKFILL, EXPORTED
from flowstone.api.reference import default_of, fields, main, page, pages, type_of

ROOT = Path(__file__).parents[3]


def test_pages_are_those_of_the_models() -> None:
    """The pages in docs/reference are what the models make; run `python -m flowstone.api.reference` when this fails."""
    folder = ROOT / "docs" / "reference"
    found = {f"{kind.singular}.md": (folder / f"{kind.singular}.md").read_text() for kind in EXPORTED}
    assert found == pages()


def test_command_writes_the_pages(tmp_path: Path) -> None:
    """The command writes every page into the directory it is given, and makes that."""
    main([str(tmp_path / "new")])
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == pages()


def test_each_field_stands_once() -> None:
    """A page has one row for each field, also below lists and maps."""
    paths = [path for path, _, _ in fields(resource_schema(BACKFILL)["properties"]["spec"], "")]
    assert len(paths) == len(set(paths))
    assert "partitions.<name>.exclude.ranges[].before" in paths
    rows = [line for line in page(BACKFILL).splitlines() if line.startswith("| `maxParallel`")]
    assert rows == [
        "| `maxParallel` | integer, at least 1, at most 10,000 | `10` |"
        " Batches, that is Jobs, that are open at once at most. Lowering it stops none: open ones run to their end. |"
    ]


def test_rules_stand_on_their_fields() -> None:
    """What the API server refuses is listed by the field that its answer names."""
    text = page(BACKFILL)
    assert "- `spec.cancel`: cancel cannot be taken back" in text
    assert "- `spec.partitions.<name>.exclude.ranges[].from`: from is later than through" in text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 100}, "integer, at least 0, at most 100"),
        ({"type": "string", "maxLength": 512}, "string, at most 512 characters"),
        ({"type": "string", "format": "date-time"}, "instant"),
        ({"type": "string", "enum": ["A", "B"]}, "`A` \\| `B`"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 2_000}, "list of string, at most 2,000 of them"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "map of name to string"),
    ],
)
def test_types_in_words(schema: dict[str, object], words: str) -> None:
    """A type is told with its bounds."""
    assert type_of(schema) == words


def test_defaults_as_in_a_manifest() -> None:
    """A default is written as in YAML; a required field has none, and an empty one is not worth a word."""
    schemas: list[dict[str, object]] = [{"default": False}, {"default": 10}, {"default": {}}, {}]
    assert [default_of(schema, required=False) for schema in schemas] == ["`false`", "`10`", "", ""]
    assert default_of({}, required=True) == "required"
