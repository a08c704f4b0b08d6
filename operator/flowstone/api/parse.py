"""From a resource as Kubernetes hands it out to what the story works with.

The schema has refused most of what is wrong. What it let through (older CRDs, local files, what CEL cannot say) is
refused here, with the first error named by field, value and remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flowstone.api.asset import AssetSpec
from flowstone.api.backfill import BackfillSpec
from flowstone.api.base import Model
from flowstone.errors import InvalidSpec

_Spec = TypeVar("_Spec", bound=Model)

MAX_SHOWN = 120
"""Characters of an offending value that a message shows."""

_REMEDIES = {
    "missing": "it is required: add it",
    "extra_forbidden": "no such field: remove it, correct its spelling, or upgrade the operator",
}


@dataclass(frozen=True, slots=True)
class Meta:
    """Who a resource is; it can be read even when the spec is no good.

    Attributes:
        generation: Counts the versions of the spec.
        resource_version: For writes that must not overwrite a newer state.
        deleting: Somebody asked for its deletion.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    created_at: datetime | None
    deleting: bool


@dataclass(frozen=True, slots=True)
class BackfillResource(Meta):
    """A Backfill: who it is, and what is asked for."""

    spec: BackfillSpec


@dataclass(frozen=True, slots=True)
class AssetResource(Meta):
    """An Asset: who it is, and what it is."""

    spec: AssetSpec

    @property
    def id(self) -> str:
        """The asset's name in the ledger and in Python."""
        return self.spec.id or self.name


def parse_meta(resource: Mapping[str, Any]) -> Meta:
    """Return who the resource is, without looking at its spec."""
    return Meta(**_meta(resource))


def parse_backfill(resource: Mapping[str, Any]) -> BackfillResource:
    """Return the Backfill that a JSON object describes.

    Raises:
        InvalidSpec: The spec passed the schema, if it met it at all, and still makes no sense.
    """
    spec = validated(BackfillSpec, resource.get("spec"), "spec")
    return BackfillResource(**_meta(resource), spec=spec)


def parse_asset(resource: Mapping[str, Any]) -> AssetResource:
    """Return the Asset that a JSON object describes.

    Raises:
        InvalidSpec: The spec passed the schema, if it met it at all, and still makes no sense.
    """
    spec = validated(AssetSpec, resource.get("spec"), "spec")
    return AssetResource(**_meta(resource), spec=spec)


def validated(model: type[_Spec], value: object, field: str) -> _Spec:
    """Return the model of a JSON value; its first error becomes an InvalidSpec below `field`."""
    try:
        return model.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _as_invalid_spec(error.errors(include_url=False)[0], field) from None


def _meta(resource: Mapping[str, Any]) -> dict[str, Any]:
    metadata = resource.get("metadata") or {}
    created = metadata.get("creationTimestamp")
    return {
        "name": metadata.get("name", ""),
        "namespace": metadata.get("namespace", ""),
        "uid": metadata.get("uid", ""),
        "generation": metadata.get("generation", 0),
        "resource_version": metadata.get("resourceVersion", ""),
        "created_at": datetime.fromisoformat(created) if created else None,
        "deleting": "deletionTimestamp" in metadata,
    }


def _as_invalid_spec(error: ErrorDetails, field: str) -> InvalidSpec:
    context = error.get("ctx", {})
    path = [field, *(str(part) for part in error["loc"])]
    if error["type"] == "refusal":
        below = [context["field"]] if context["field"] else []
        return InvalidSpec(".".join(path + below), shown(context["value"]), context["remedy"])
    value = "" if error["type"] == "missing" else shown(error["input"])
    return InvalidSpec(".".join(path), value, _REMEDIES.get(error["type"]) or _said_plainly(error["msg"]))


def _said_plainly(message: str) -> str:
    return message.replace("Input should be", "it must be").replace("String should", "it should")


def shown(value: object) -> object:
    """Return a value as a message shows it: numbers as they are, long texts and structures cut."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
