"""Stretches of time as a manifest writes them: `from` with `through` (included) or `before` (left out)."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from flowstone.api.base import Model, refusal
from flowstone.api.rules import Rule, validations
from flowstone.api.text import StepText, TimeText

ONE_END = "write either through (that one included) or before (that one left out)"
SAME_FORM = "write both as days (2013-02-28) or both as instants (2013-02-28T00:00:00Z)"
IN_ORDER = "write the earlier one in from"


def _form_rule(end: str) -> Rule:
    return Rule(
        f"!has(self.from) || !has(self.{end}) || self.from.size() == self.{end}.size()",
        f"from and {end} have different forms: {SAME_FORM}",
        f"'from ' + self.from + ' and {end} ' + self.{end} + ' have different forms: {SAME_FORM}'",
        f".{end}",
    )


def _order_rule(end: str, relation: str, says: str) -> Rule:
    # Canonical texts of one form are ordered as their instants are, so comparing texts is enough.
    return Rule(
        f"!has(self.from) || !has(self.{end}) || self.from.size() != self.{end}.size()"
        f" || self.from {relation} self.{end}",
        f"from is {says} {end}: {IN_ORDER}",
        f"'from ' + self.from + ' is {says} {end} ' + self.{end} + ': {IN_ORDER}'",
        ".from",
    )


SPAN_RULES = (
    Rule(
        "!has(self.from) || has(self.through) != has(self.before)",
        f"from needs one end: {ONE_END}",
        f"'from ' + self.from + ' needs one end: {ONE_END}'",
        ".from",
    ),
    _form_rule("through"),
    _form_rule("before"),
    _order_rule("through", "<=", "later than"),
    _order_rule("before", "<", "not earlier than"),
)
"""What the API server checks wherever `from`, `through` and `before` stand together."""


def check_span(start: str | None, through: str | None, before: str | None) -> None:
    """Refuse what SPAN_RULES refuse, in the same words."""
    if start is None:
        return
    if (through is None) == (before is None):
        raise refusal("from", start, f"from {start} needs one end: {ONE_END}")
    end, text = ("through", through) if through is not None else ("before", before)
    if text is None or len(start) != len(text):
        raise refusal(end, text, f"from {start} and {end} {text} have different forms: {SAME_FORM}")
    if through is not None and start > through:
        raise refusal("from", start, f"from {start} is later than through {through}: {IN_ORDER}")
    if before is not None and start >= before:
        raise refusal("from", start, f"from {start} is not earlier than before {before}: {IN_ORDER}")


class Span(Model):
    """A stretch of days or instants."""

    model_config = ConfigDict(json_schema_extra=validations(*SPAN_RULES))

    start: TimeText = Field(alias="from")
    """The first day (2013-01-01) or instant (2013-01-01T00:00:00Z), included."""

    through: TimeText | None = None
    """The last day or instant, included; instead of `before`."""

    before: TimeText | None = None
    """The first day or instant that is no longer included; instead of `through`."""

    @model_validator(mode="after")
    def _is_a_stretch(self) -> Span:
        check_span(self.start, self.through, self.before)
        return self


class Range(Span):
    """A stretch of days or instants, walked in steps."""

    step: StepText | None = None
    """Distance of two neighbours: hour, day, week, month, quarter, year, or a number of them such as `2 weeks`;
    unset means one unit of the dimension."""
