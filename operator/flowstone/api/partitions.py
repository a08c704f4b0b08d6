"""From what manifests say to the set of partitions that is meant.

The CRD's schema does not know the type of a dimension, so whether `2013-02-30` is a value, or whether a range fits, is
first seen here. Every refusal names the field of the manifest, its value and what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from flowstone.api.asset import AssetSpec, DimensionSpec
from flowstone.api.backfill import BackfillSpec, DimensionValues, Exclude
from flowstone.api.parse import shown
from flowstone.api.span import Span
from flowstone.errors import InvalidSpec, PartitionError
from flowstone.partition import Dimension, PartitionSet, Values, deserialize, explicit, product, range_of, values_of
from flowstone.partition import Span as Stretch

_Read = TypeVar("_Read")


def dimensions(asset: AssetSpec) -> tuple[Dimension, ...]:
    """Return the dimensions of the asset's key, in order, with unit and zone filled in.

    Raises:
        InvalidSpec: A time zone does not exist.
    """
    return tuple(_dimension(place, one) for place, one in enumerate(asset.partitioned_by))


def described(asset: AssetSpec) -> list[dict[str, str | None]]:
    """Return name, type, unit and timezone of each dimension, as workers are told them."""
    return [
        {"name": one.name, "type": one.type, "unit": one.unit, "timezone": one.timezone} for one in dimensions(asset)
    ]


def declared(asset: AssetSpec) -> dict[str, Values]:
    """Return the values that the asset declares, by dimension; a dimension that declares none is absent.

    Raises:
        InvalidSpec: A declared value or range is none of its dimension.
    """
    axes = zip(dimensions(asset), asset.partitioned_by, strict=True)
    found = {axis.name: _declared(place, axis, one) for place, (axis, one) in enumerate(axes)}
    return {name: values for name, values in found.items() if values is not None}


def partition_set(asset: AssetSpec, spec: BackfillSpec, tenants: Sequence[str] = ()) -> PartitionSet:
    """Return the partitions that a Backfill asks for, ascending; lazy, whatever their number.

    Args:
        tenants: Ids of the Tenants that the namespace may use: the declared values of a tenant dimension.

    Raises:
        InvalidSpec: An unknown dimension, values that are not declared, a value of another type, a range off its grid,
            exclusions that leave nothing, or an asset that is no good itself.
    """
    with _blaming_asset(spec):
        axes = dimensions(asset)
    if spec.keys is not None:
        return _listed(axes, spec.keys)
    values = _all_values(asset, axes, spec, tenants)
    with _refused("spec.partitions", _names(axes)):
        whole = product(axes, values)
    return _without_combinations(axes, values, spec) if spec.exclude_combinations else whole


def _dimension(place: int, one: DimensionSpec) -> Dimension:
    with _refused(f"spec.partitionedBy.{place}.timezone", one.timezone):
        kind = "string" if one.type == "tenant" else one.type
        return Dimension(one.name, kind, one.unit, one.timezone or "UTC")


def _declared(place: int, axis: Dimension, one: DimensionSpec) -> Values | None:
    field = f"spec.partitionedBy.{place}"
    if one.values is not None:
        return _list(axis, one.values, f"{field}.values")
    return _range(axis, one.range, one.range.step, f"{field}.range") if one.range is not None else None


def _listed(axes: Sequence[Dimension], keys: Sequence[str]) -> PartitionSet:
    return _read("spec.keys", keys, lambda texts: explicit(axes, texts))


def _all_values(
    asset: AssetSpec, axes: Sequence[Dimension], spec: BackfillSpec, tenants: Sequence[str]
) -> list[Values]:
    unknown = sorted(set(spec.partitions or {}) - {axis.name for axis in axes})
    if unknown:
        remedy = f"the Asset {spec.asset} has no dimension of this name; it has {_names(axes)}"
        raise InvalidSpec(f"spec.partitions.{unknown[0]}", unknown[0], remedy)
    pairs = zip(axes, asset.partitioned_by, strict=True)
    return [_values(place, axis, one, spec, tenants) for place, (axis, one) in enumerate(pairs)]


def _values(place: int, axis: Dimension, one: DimensionSpec, spec: BackfillSpec, tenants: Sequence[str]) -> Values:
    field = f"spec.partitions.{axis.name}"
    entry = (spec.partitions or {}).get(axis.name, DimensionValues())
    if entry.values is not None:
        values = _list(axis, entry.values, f"{field}.values")
    elif entry.start is not None:
        span = Span(start=entry.start, through=entry.through, before=entry.before)
        values = _range(axis, span, entry.step, field)
    elif one.type == "tenant":
        values = _tenants(axis, tenants, field)
    else:
        values = _declared_values(place, axis, one, spec)
    return _without(axis, values, entry.exclude, f"{field}.exclude") if entry.exclude else values


def _tenants(axis: Dimension, tenants: Sequence[str], field: str) -> Values:
    if not tenants:
        remedy = "no Tenant names this namespace in its spec.namespaces: create one, or list tenants here"
        raise InvalidSpec(field, None, remedy)
    return _list(axis, tenants, field)


def _declared_values(place: int, axis: Dimension, one: DimensionSpec, spec: BackfillSpec) -> Values:
    with _blaming_asset(spec):
        values = _declared(place, axis, one)
    if values is None:
        remedy = (
            f"the Asset {spec.asset} declares no values of {axis.name}: write {axis.name} with values or from here,"
            " or add values or range to the Asset"
        )
        raise InvalidSpec(f"spec.partitions.{axis.name}", None, remedy)
    return values


def _list(axis: Dimension, texts: Sequence[str], field: str) -> Values:
    return _read(field, texts, lambda some: values_of(axis, some))


def _range(axis: Dimension, span: Span, step: str | None, field: str) -> Values:
    _check_ends(axis, span, field)
    with _refused(f"{field}.from", span.start):
        range_of(axis, span.start, through=span.start)
    if step is not None:
        with _refused(f"{field}.step", step):
            range_of(axis, span.start, through=span.start, step=step)
    with _refused(f"{field}.from", span.start):
        return range_of(axis, span.start, through=span.through, before=span.before, step=step)


def _check_ends(axis: Dimension, span: Span, field: str) -> None:
    for end, text in (("from", span.start), ("through", span.through), ("before", span.before)):
        if text is not None:
            with _refused(f"{field}.{end}", text):
                deserialize(text, axis.kind)


def _without(axis: Dimension, values: Values, exclude: Exclude, field: str) -> Values:
    texts, spans = exclude.values or (), exclude.ranges or ()
    if texts:
        _list(axis, texts, f"{field}.values")
    for place, span in enumerate(spans):
        _check_ends(axis, span, f"{field}.ranges.{place}")
    with _refused(field, f"{len(texts)} values, {len(spans)} ranges"):
        return values.without(texts, [Stretch(span.start, span.through, span.before) for span in spans])


def _without_combinations(axes: Sequence[Dimension], values: Sequence[Values], spec: BackfillSpec) -> PartitionSet:
    field, combinations = "spec.excludeCombinations", spec.exclude_combinations or ()
    by_name = {axis.name: axis for axis in axes}
    for place, combination in enumerate(combinations):
        for name, text in combination.items():
            if name not in by_name:
                remedy = f"the Asset {spec.asset} has no dimension of this name; it has {_names(axes)}"
                raise InvalidSpec(f"{field}.{place}.{name}", name, remedy)
            with _refused(f"{field}.{place}.{name}", text):
                by_name[name].parse(text)
    with _refused(field, f"{len(combinations)} combinations"):
        return product(axes, values, combinations)


def _names(axes: Sequence[Dimension]) -> str:
    return ", ".join(axis.name for axis in axes)


def _read(field: str, texts: Sequence[str], read: Callable[[Sequence[str]], _Read]) -> _Read:
    """Read all texts in one go; if that fails, name the first one that cannot be read by itself."""
    try:
        return read(texts)
    except PartitionError:
        for place, text in enumerate(texts):
            with _refused(f"{field}.{place}", text):
                read([text])
    with _refused(field, f"{len(texts)} entries"):
        return read(texts)


@contextmanager
def _refused(field: str, value: object) -> Iterator[None]:
    """Turn the refusal of a partition, range or set into one that names the manifest's field."""
    try:
        yield
    except PartitionError as error:
        raise InvalidSpec(field, shown(value), str(error)) from error


@contextmanager
def _blaming_asset(spec: BackfillSpec) -> Iterator[None]:
    """Turn a fault of the Asset into one of the Backfill that names it."""
    try:
        yield
    except InvalidSpec as error:
        raise InvalidSpec("spec.asset", spec.asset, f"the Asset itself is not valid: {error}") from error
