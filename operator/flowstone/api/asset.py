"""Asset: a named data artifact that is computed one partition at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, WithJsonSchema, model_validator

from flowstone.api.base import Model, StatusModel, refusal
from flowstone.api.conditions import Conditions
from flowstone.api.rules import Rule, frozen, frozen_scalar, validations
from flowstone.api.span import Range
from flowstone.api.text import DimensionName, Identifier, KeyText

DimensionType = Literal["date", "datetime", "string", "tenant"]
Tier = Literal["basic", "standard", "premium", "enterprise"]
Unit = Literal["hour", "day", "week", "month", "quarter", "year"]

TENANT_MARK = "{tenant}"
"""What stands for the tenant's id in a storage location."""

MAX_DIMENSIONS = 8
"""Dimensions of a key at most; more would pass what the API server allows rules on excluded ranges to cost."""

MAX_VALUES = 10_000
"""Values in one list at most; more belong into a range, or into several Backfills."""

_NEW_ASSET = "the keys of recorded partitions depend on it; create another Asset"
_NO_TIME = "only a dimension of time has unit, timezone or range: remove it, or use type date or datetime"
_NO_VALUES = "a tenant dimension's values are the Tenants of the namespace: remove values"
_ONE_TENANT = "two dimensions are of type tenant, and a row belongs to one: make one of them a string"
_SEPARATE = (
    "write {tenant} into bucket, schema or table, or as a segment of prefix, so that no two tenants share a place"
)
_UPWARD = frozenset({".", ".."})
_NO_WAY_BACK = "prefix has a segment . or .., which leads out of a tenant's folder: write the path without it"
_ONE_SOURCE = "values and range are both set: keep one of them"
_NO_HOURS = "a date has no hours: write day, week, month, quarter or year, or use type datetime"


class DimensionSpec(Model):
    """One element of the asset's partition key."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            Rule("self.type == oldSelf.type", f"type cannot be changed: {_NEW_ASSET}", field=".type"),
            frozen_scalar("unit", _NEW_ASSET),
            frozen_scalar("timezone", _NEW_ASSET),
            Rule("!(has(self.values) && has(self.range))", _ONE_SOURCE, field=".range"),
            Rule(
                "!(self.type in ['string', 'tenant']) || !(has(self.unit) || has(self.timezone) || has(self.range))",
                _NO_TIME,
                f"'dimension \"' + self.name + '\": {_NO_TIME}'",
            ),
            Rule("self.type != 'tenant' || !has(self.values)", _NO_VALUES.replace("'", "\\'"), field=".values"),
            Rule("self.type != 'date' || !has(self.unit) || self.unit != 'hour'", _NO_HOURS, field=".unit"),
        )
    )

    name: DimensionName
    """The dimension's name; a Backfill's `partitions` and the worker's parameters are called by it. Immutable."""

    type: DimensionType
    """What a value is: a calendar day (date), an instant (datetime), a text (string), or the id of a Tenant that the
    namespace may use (tenant); the rows of a tenant's partitions are that tenant's alone. Immutable."""

    unit: Unit | None = None
    """How long one partition of a time dimension is; unset means day for date and hour for datetime. Immutable."""

    timezone: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """IANA name of the zone whose days and hours are meant, such as Europe/Berlin; unset means UTC. Immutable."""

    values: Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None
    """All values there are, for Backfills that name none of this dimension; read once, when one is planned."""

    range: Range | None = None
    """All values there are, as a stretch of time; instead of `values`."""

    @model_validator(mode="after")
    def _fits_together(self) -> DimensionSpec:
        if self.values is not None and self.range is not None:
            raise refusal("range", "set", _ONE_SOURCE)
        if self.type == "tenant" and self.values is not None:
            raise refusal("values", f"{len(self.values)} values", _NO_VALUES)
        if self.type in ("string", "tenant") and (self.unit or self.timezone or self.range):
            raise refusal("", self.name, f'dimension "{self.name}": {_NO_TIME}')
        if self.type == "date" and self.unit == "hour":
            raise refusal("unit", self.unit, _NO_HOURS)
        return self


def _is_pod_template(template: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = template.get("spec")
    if not isinstance(spec, Mapping):
        raise refusal("spec", spec, "write a pod's spec here, as in a Job's template")
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers:
        raise refusal("spec.containers", containers, "name at least one container with an image")
    return template


_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_CONTAINERS = {
    "type": "array",
    "description": "The containers of the pod; each gets the FLOWSTONE_ and PG environment variables.",
    "minItems": 1,
    "maxItems": 64,
    "items": _OPEN,
}
_POD_SPEC = _OPEN | {
    "description": "The pod's spec, checked by the API server when the asset is first used.",
    "required": ["containers"],
    "properties": {"containers": _CONTAINERS},
}
_TEMPLATE_SCHEMA = _OPEN | {"required": ["spec"], "properties": {"spec": _POD_SPEC}}

PodTemplate = Annotated[dict[str, Any], WithJsonSchema(_TEMPLATE_SCHEMA), AfterValidator(_is_pod_template)]
"""A pod template as Kubernetes writes it, untyped: the full schema would not fit into a CRD."""

Dimensions = Annotated[
    tuple[DimensionSpec, ...],
    Field(
        min_length=1,
        max_length=MAX_DIMENSIONS,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            **validations(
                Rule(
                    "self.map(d, d.name) == oldSelf.map(d, d.name)",
                    f"dimensions cannot be added, removed or put in another order: {_NEW_ASSET}",
                )
            ),
        },
    ),
]


Place = Annotated[str, Field(min_length=1, max_length=512)]


class Storage(Model):
    """Where the result lives; `{tenant}` stands for the tenant's id."""

    bucket: Place | None = None
    """Bucket of an object store; workers find it in FLOWSTONE_STORAGE_BUCKET."""

    prefix: Place | None = None
    """Path in the bucket or of a folder, `{tenant}` as a whole segment of it; FLOWSTONE_STORAGE_PREFIX."""

    schema_name: Place | None = Field(None, alias="schema")
    """Schema of a database; FLOWSTONE_STORAGE_SCHEMA."""

    table: Place | None = None
    """Table of a database; FLOWSTONE_STORAGE_TABLE."""

    @property
    def shared(self) -> str | None:
        """Why two tenants would meet in this place, or None.

        A prefix counts only when `{tenant}` is a whole segment: with ids `a` and `ab`, `data-{tenant}` would put the
        one's objects below the other's. In a folder `..` would lead out of the tenant's place again.
        """
        exact = (self.bucket, self.schema_name, self.table)
        segments = (self.prefix or "").split("/")
        if _UPWARD & set(segments):
            return _NO_WAY_BACK
        apart = any(part is not None and TENANT_MARK in part for part in exact)
        return None if apart or TENANT_MARK in segments else _SEPARATE


class AssetSpec(Model):
    """What the asset is, and how one of its partitions is computed."""

    model_config = ConfigDict(json_schema_extra=validations(frozen("id", _NEW_ASSET)))

    id: Identifier | None = None
    """The asset's name in the ledger and in Python, such as `daily_report`; unset means metadata.name. Immutable."""

    partitioned_by: Dimensions
    """The dimensions of the partition key, in the order in which a serialized key names them."""

    template: PodTemplate
    """The pod that works off a batch of partitions. An edit holds for batches handed out later."""

    required_tier: Tier | None = None
    """The lowest tier of tenant that may have this asset; unset means any tenant, and work without a tenant."""

    storage: Storage | None = None
    """Where the result lives. For an asset with a tenant dimension one of its parts must contain `{tenant}`."""

    @property
    def tenant_dimension(self) -> int | None:
        """Position of the tenant dimension in a key, or None."""
        return next((place for place, one in enumerate(self.partitioned_by) if one.type == "tenant"), None)

    @model_validator(mode="after")
    def _tenants_apart(self) -> AssetSpec:
        tenants = [one.name for one in self.partitioned_by if one.type == "tenant"]
        if len(tenants) > 1:
            raise refusal("partitionedBy", tenants[1], _ONE_TENANT)
        if tenants and self.storage is not None and self.storage.shared:
            raise refusal("storage", self.storage.to_dict(), self.storage.shared)
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> AssetSpec:
        names = [dimension.name for dimension in self.partitioned_by]
        upper = [name.upper() for name in names]
        twice = next((name for name in names if upper.count(name.upper()) > 1), None)
        if twice is not None:
            remedy = "two dimensions have this name but for its case, and FLOWSTONE_PARTITION_* has one: rename one"
            raise refusal("partitionedBy", twice, remedy)
        return self


class AssetStatus(StatusModel):
    """What the operator last saw of the asset."""

    observed_generation: Annotated[StrictInt, Field(ge=-1)] = -1
    """The metadata.generation that this status is about; -1 before the operator has seen the asset."""

    conditions: Conditions = ()
    """Ready and Stalled."""
