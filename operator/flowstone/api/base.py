"""What every model of the API has in common: camelCase outside, snake_case inside, frozen, no unknown fields.

A model says three things at once: what Python holds, what the CRD's schema says, and (through `rules.py`) what
the API server refuses. Whatever a CEL rule refuses, the model refuses with the same words, so that a manifest
read by local mode or by the operator of another version meets the same answer.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

GROUP = "flowstone.dev"
"""The API group of every custom resource."""

VERSION = "v1alpha1"
"""The one version that is served and stored."""

API_VERSION = f"{GROUP}/{VERSION}"
"""What a manifest says as its `apiVersion`."""


class Model(BaseModel):
    """The base of every spec: an unknown field is refused, for a field that is ignored is a promise broken."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a manifest, without the fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(Model):
    """The base of every status: a field written by a newer operator is read over, not refused."""

    model_config = ConfigDict(extra="ignore")


def refusal(field: str, value: object, remedy: str) -> PydanticCustomError:
    """Return the error that a validator raises; `parse.py` turns it into InvalidSpec.

    Args:
        field: The field below the model that refuses, in camelCase, or "" for the validated value itself.
        value: What stands there.
        remedy: What to write instead.
    """
    return PydanticCustomError("refusal", "{remedy}", {"field": field, "value": value, "remedy": remedy})


def _to_second(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Instant = Annotated[AwareDatetime, PlainSerializer(_to_second, return_type=str, when_used="json")]
"""A moment as Kubernetes writes it: UTC, whole seconds."""
