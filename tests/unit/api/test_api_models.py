"""The models judge manifests as the API server does, and hand out what was meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from flowstone.api.backfill import BackfillSpec
from flowstone.api.parse import (
    MAX_SHOWN,
    AssetResource,
    BackfillResource,
    Meta,
    parse_asset,
    parse_backfill,
    parse_meta,
)
from flowstone.errors import InvalidSpec
from tests.unit.api.manifests import BAD, GOOD, Case, asset, backfill, days, resource

Parser = Callable[[Mapping[str, Any]], BackfillResource | AssetResource]
PARSERS: dict[str, Parser] = {"Backfill": parse_backfill, "Asset": parse_asset}


def spec_of(**fields: Any) -> BackfillSpec:
    """The spec of a Backfill with these fields."""
    return parse_backfill({"metadata": {"name": "b"}, "spec": backfill(**fields)}).spec


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_manifest_is_read_and_written_back(case: Case) -> None:
    """A good manifest is accepted, and writing the model out says everything that the manifest said."""
    written = PARSERS[case.kind](resource(case)).spec.to_dict()
    assert {key: written[key] for key in case.spec} == case.spec


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_manifest_is_refused_by_field_value_and_remedy(case: Case) -> None:
    """A bad manifest raises InvalidSpec that names the field, the value and what to write instead."""
    with pytest.raises(InvalidSpec) as caught:
        PARSERS[case.kind](resource(case))
    assert caught.value.field == case.field
    assert caught.value.remedy
    said = str(caught.value)
    assert [piece for piece in case.says if piece not in said] == []


def test_defaults_are_those_of_the_design() -> None:
    """What a manifest leaves out is what the design's table says."""
    spec = spec_of()
    assert spec.to_dict() == {
        "asset": "daily",
        "select": "Missing",
        "order": "Ascending",
        "maxParallel": 10,
        "targetBatchSeconds": 60,
        "retry": {"limit": 2, "backoffSeconds": 10, "maxBackoffSeconds": 600},
        "cancel": False,
        "readyWhen": "Accepted",
    }
    assert spec.batch_size is None


def test_metadata_is_read_even_when_the_spec_is_bad() -> None:
    """Who the resource is can be told without its spec, so that the refusal can be written to its status."""
    metadata = {
        "name": "delays",
        "namespace": "analytics",
        "uid": "u-1",
        "generation": 3,
        "resourceVersion": "77",
        "creationTimestamp": "2026-11-24T10:00:00Z",
        "deletionTimestamp": "2026-11-24T11:00:00Z",
    }
    created = datetime(2026, 11, 24, 10, tzinfo=UTC)
    expected = Meta("delays", "analytics", "u-1", 3, "77", created, deleting=True)
    assert parse_meta({"metadata": metadata, "spec": {"asset": 5}}) == expected


def test_resource_carries_its_metadata() -> None:
    """A parsed Backfill has name, namespace, uid and generation beside its spec."""
    metadata = {"name": "b", "namespace": "n", "uid": "u", "generation": 2}
    parsed = parse_backfill({"metadata": metadata, "spec": days(values=["2013-01-01"])})
    assert (parsed.name, parsed.namespace, parsed.uid, parsed.generation) == ("b", "n", "u", 2)
    assert parsed.spec.partitions is not None
    assert parsed.spec.partitions["day"].values == ("2013-01-01",)
    assert parsed.deleting is False


def test_asset_id_is_the_name_unless_it_is_set() -> None:
    """`id` defaults to metadata.name."""
    metadata = {"name": "daily-report"}
    assert parse_asset({"metadata": metadata, "spec": asset()}).id == "daily-report"
    assert parse_asset({"metadata": metadata, "spec": asset(id="daily_report")}).id == "daily_report"


def test_missing_spec_is_refused_by_its_name() -> None:
    """A resource without a spec is refused as `spec`."""
    with pytest.raises(InvalidSpec) as caught:
        parse_backfill({"metadata": {"name": "b"}})
    assert caught.value.field == "spec"


def test_long_value_is_shown_cut() -> None:
    """A message shows the beginning of a long value and its length, not all of it."""
    with pytest.raises(InvalidSpec) as caught:
        spec_of(asset="A" * 200)
    assert caught.value.value == "A" * MAX_SHOWN + "… (200 characters)"


@pytest.mark.parametrize("field", ["maxParallel", "batchSize"])
@pytest.mark.parametrize("value", [True, 1.5, "1", None])
def test_numbers_are_not_guessed(field: str, value: object) -> None:
    """A whole number is a whole number: no text, no fraction and no truth value stands for one."""
    if field == "batchSize" and value is None:
        assert spec_of(batchSize=None).batch_size is None
        return
    with pytest.raises(InvalidSpec) as caught:
        spec_of(**{field: value})
    assert caught.value.field == f"spec.{field}"


def test_frozen_digest_follows_the_frozen_fields_alone() -> None:
    """Live fields and the order of map entries leave the digest alone; each frozen field changes it."""
    two = {"day": {"values": ["2013-01-01"]}, "carrier": {"values": ["UA"]}}
    base = spec_of(partitions=two)
    turned = spec_of(partitions=dict(reversed(two.items())), maxParallel=99, order="Descending", cancel=True)
    assert turned.frozen_digest() == base.frozen_digest()
    others = [
        spec_of(partitions=two | {"day": {"values": ["2013-01-02"]}}),
        spec_of(partitions=two, select="All"),
        spec_of(partitions=two, asset="other"),
        spec_of(partitions=two, excludeCombinations=[{"day": "2013-01-01"}]),
        spec_of(keys=["UA|2013-01-01"]),
    ]
    assert len({spec.frozen_digest() for spec in (base, *others)}) == 6


def test_defaults_spelled_out_leave_the_digest_alone() -> None:
    """The API server fills in defaults; a manifest with and without them asks for the same."""
    assert spec_of(select="Missing").frozen_digest() == spec_of().frozen_digest()
