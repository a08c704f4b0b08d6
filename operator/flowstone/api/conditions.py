"""Conditions: what a resource says about itself to people, kubectl wait and kstatus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt

from flowstone.api.base import Instant, StatusModel


class Condition(StatusModel):
    """One observation about the resource, in the form of the Kubernetes API conventions."""

    type: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$")]
    """What is observed, such as Ready."""

    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""

    reason: Annotated[str, Field(min_length=1, max_length=128, pattern="^[A-Za-z][A-Za-z0-9_]*$")]
    """One word for programs that says why, such as AssetNotFound."""

    message: Annotated[str, Field(max_length=4096)]
    """A sentence for people: the field, the value and the remedy where something is wrong."""

    last_transition_time: Instant
    """When `status` last changed, in UTC."""

    observed_generation: Annotated[StrictInt, Field(ge=0)]
    """The metadata.generation that this was observed of; an older one than the present says nothing about it."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
"""All conditions of one resource, at most one of each type."""
