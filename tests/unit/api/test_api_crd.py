"""The CRDs say what the models say, in the form that Kubernetes wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowstone.api.backfill import BackfillSpec
from flowstone.api.crd import MAX_BYTES, crd, files, main, resource_schema
from flowstone.api.kinds import ASSET, BACKFILL, EXPORTED, TENANT, Kind
from flowstone.api.rules import frozen

ROOT = Path(__file__).parents[3]
KINDS = pytest.mark.parametrize("kind", [ASSET, BACKFILL, TENANT], ids=lambda kind: kind.name)


def parts(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below this one, and its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from parts(schema[key], f"{path}[]")


def written(kind: Kind) -> list[tuple[str, dict[str, Any]]]:
    """The parts of spec and status: what the models say, without the frame."""
    properties = resource_schema(kind)["properties"]
    return [part for name in ("spec", "status") for part in parts(properties[name], name)]


def test_files_are_those_of_the_models() -> None:
    """The files in crds/ are what the models make; run `python -m flowstone.api.crd` when this fails."""
    found = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    assert found == files()


def test_command_writes_the_files(tmp_path: Path) -> None:
    """The command writes every file into the directory it is given, and makes that."""
    main([str(tmp_path / "new")])
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == files()


def test_only_reconciled_kinds_are_exported() -> None:
    """A kind that no operator looks at has no CRD."""
    assert [kind.name for kind in EXPORTED] == ["Asset", "Backfill", "Tenant"]


@pytest.mark.parametrize("name", sorted(files()))
def test_file_is_far_below_the_limit_of_kubectl_apply(name: str) -> None:
    """Each file fits many times into the annotation in which `kubectl apply` keeps it."""
    text = files()[name]
    assert len(text.encode()) < MAX_BYTES / 4
    assert "&id" not in text


@KINDS
def test_every_field_is_described(kind: Kind) -> None:
    """`kubectl explain` has a sentence for every field."""
    nameless = ("[]", ".apiVersion", ".kind", ".metadata")
    bare = [path for path, part in written(kind) if not part.get("description") and not path.endswith(nameless)]
    assert bare == []


@KINDS
def test_every_part_is_structural(kind: Kind) -> None:
    """Each part has one type, and none of the words that a structural schema must not have."""
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "not"}
    for path, part in written(kind):
        assert part.get("type") in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert forbidden.isdisjoint(part), path
        assert not ("properties" in part and "additionalProperties" in part), path
        assert part.get("default", 0) is not None, path


@KINDS
def test_everything_has_a_bound(kind: Kind) -> None:
    """Every text, list and map has a maximum, or the cost of rules could not be estimated."""
    unbounded = [
        path
        for path, part in written(kind)
        if (part["type"] == "array" and "maxItems" not in part)
        or ("additionalProperties" in part and "maxProperties" not in part)
        or (part["type"] == "string" and not {"maxLength", "enum", "format"} & set(part))
    ]
    assert unbounded == []


@KINDS
def test_rules_have_a_message_with_a_remedy(kind: Kind) -> None:
    """Every rule says in words what to do, and names it in a message of one line."""
    for _, part in parts(resource_schema(kind), kind.name):
        for rule in part.get("x-kubernetes-validations", []):
            assert set(rule) <= {"rule", "message", "messageExpression", "fieldPath"}
            assert len(rule["message"]) > 20
            assert "\n" not in rule["message"] + rule["rule"]


@KINDS
def test_status_starts_unobserved(kind: Kind) -> None:
    """A resource that no operator has seen says observedGeneration -1, so that kstatus waits."""
    status = resource_schema(kind)["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    assert status["properties"]["observedGeneration"]["default"] == -1
    conditions = status["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    fields = {"type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"}
    assert set(conditions["items"]["required"]) == fields


def test_frozen_fields_have_their_rules() -> None:
    """Each field that makes up the digest is refused an edit by the API server, in the form that sees removal too."""
    schema = resource_schema(BACKFILL)["properties"]["spec"]
    rules = {rule["rule"] for rule in schema["x-kubernetes-validations"]}
    optional = [field for field in BackfillSpec.FROZEN if field not in schema["required"]]
    assert {frozen(field, "").rule for field in optional} <= rules
    assert "self.asset == oldSelf.asset" in rules
    assert schema["required"] == ["asset"]


def test_only_delivered_fields_are_declared() -> None:
    """The CRD has the fields that are delivered, and none that nothing enforces yet."""
    assert set(resource_schema(BACKFILL)["properties"]["spec"]["properties"]) == {
        "asset",
        "partitions",
        "excludeCombinations",
        "keys",
        "tenant",
        "select",
        "order",
        "maxParallel",
        "batchSize",
        "targetBatchSeconds",
        "retry",
        "failureBudget",
        "resume",
        "retryFailed",
        "suspend",
        "cancel",
        "readyWhen",
    }
    assert set(resource_schema(ASSET)["properties"]["spec"]["properties"]) == {
        "id",
        "partitionedBy",
        "template",
        "requiredTier",
        "storage",
    }


def test_columns_of_backfills() -> None:
    """`kubectl get backfills` shows phase and reason, counts, progress and age."""
    version = crd(BACKFILL)["spec"]["versions"][0]
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column]
    assert narrow == ["Phase", "Reason", "Total", "Succeeded", "Failed", "Progress", "Age"]
    assert version["subresources"] == {"status": {}}
    assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)


@KINDS
def test_the_reason_is_seen_without_asking(kind: Kind) -> None:
    """`kubectl get`, without `-o wide`, says why something is not ready: the reason of condition Ready."""
    columns = crd(kind)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column for column in columns if column["name"] == "Reason"] == [
        {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'}
    ]


@KINDS
def test_file_is_yaml_of_one_definition(kind: Kind) -> None:
    """The text of a file reads back as the definition, with its names and its category."""
    definition = yaml.safe_load(next(iter(files([kind]).values())))
    assert definition == crd(kind)
    assert definition["metadata"]["name"] == f"{kind.plural}.flowstone.dev"
    assert definition["spec"]["names"]["categories"] == ["flowstone"]
