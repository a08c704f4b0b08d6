"""Rules that the API server itself checks (CEL), written beside the models.

Kubernetes estimates the cost of a rule before it accepts a schema: size of the strings and lists it walks, times the
number of places where it stands (source: apiextensions validation, 10 million a rule, 100 million a schema).
Hence every string, list and map below a rule has a maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule.

    Attributes:
        rule: The CEL expression that must be true; `self` is the value it stands on.
        message: What a person reads when it is not: the field and the remedy.
        shows: A CEL expression for a message that shows the value; used before `message`, or "".
        field: Which field below `self` the error names, such as `.through`, or "" for `self`.
    """

    rule: str
    message: str
    shows: str = ""
    field: str = ""

    def to_schema(self) -> dict[str, str]:
        """Return the rule as an entry of `x-kubernetes-validations`."""
        entry = {"rule": self.rule, "message": self.message}
        if self.shows:
            entry["messageExpression"] = self.shows
        if self.field:
            entry["fieldPath"] = self.field
        return entry


def validations(*rules: Rule) -> dict[str, Any]:
    """Return the schema entry of these rules, for a model's or a field's `json_schema_extra`."""
    return {"x-kubernetes-validations": [rule.to_schema() for rule in rules]}


def frozen(field: str, remedy: str) -> Rule:
    """Return the rule, for the object around an optional field, that this field never changes.

    Notes:
        A transition rule on the field itself is not evaluated when the field is added or removed.
    """
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"{field} cannot be changed, added or removed: {remedy}",
        field=f".{field}",
    )


def kept(field: str, value: str, remedy: str) -> Rule:
    """Return the rule, for the object around a field with a default, that one of its values neither comes nor goes."""
    return Rule(
        f"(self.{field} == '{value}') == (oldSelf.{field} == '{value}')",
        f"{field} cannot be changed to or from {value}: {remedy}",
        field=f".{field}",
    )


def frozen_scalar(field: str, remedy: str) -> Rule:
    """Return `frozen` for an optional text; its message shows what the field was."""
    was = f"(has(oldSelf.{field}) ? '\"' + oldSelf.{field} + '\"' : 'not set')"
    plain = frozen(field, remedy)
    shows = f"'{field} cannot be changed (it was ' + {was} + '): {remedy}'"
    return Rule(plain.rule, plain.message, shows, plain.field)
