"""Backfill: a request to materialize an asset over a set of partitions.

Frozen fields say *what* is asked for and never change; live fields say *how fast and how patiently* and may be edited
at any time. A field that the operator does not honour yet is absent: nothing is declared that is not enforced.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, model_validator

from flowstone.api.asset import MAX_DIMENSIONS, MAX_VALUES
from flowstone.api.base import Model, refusal
from flowstone.api.rules import Rule, frozen, frozen_scalar, validations
from flowstone.api.span import SPAN_RULES, Span, check_span
from flowstone.api.text import Identifier, KeyText, ResourceName, StepText, TimeText

MAX_RANGES = 1_000
"""Stretches that one dimension may leave out at most."""

MAX_COMBINATIONS = 1_000
"""Combinations that a Backfill may leave out at most."""

_NEW_BACKFILL = "create another Backfill"
_ONE_SOURCE = "values and from are both set: keep one of them"
_NO_START = "through, before and step need from: write the first day or instant there"
_ONE_SET = "partitions and keys are both set: keep one of them"
_KEYS_EXCLUDE = "keys and excludeCombinations are both set: leave those keys out of keys instead"
_ONE_MEASURE = "a failure budget is either count or percent: write one of them"
_NO_WAY_BACK = "create another Backfill, which runs only what is Missing"

Token = Annotated[str, Field(min_length=1, max_length=64)]
"""A word that asks for something once: whenever it is another one than before."""

Values = Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=MAX_VALUES)]


class Exclude(Model):
    """What is left out of a dimension's values."""

    values: Values | None = None
    """Single values to leave out."""

    ranges: Annotated[tuple[Span, ...], Field(min_length=1, max_length=MAX_RANGES)] | None = None
    """Stretches of time to leave out."""


class DimensionValues(Model):
    """The values of one dimension: a list, or a stretch of time, or all declared ones, minus exclusions."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            Rule("!(has(self.values) && has(self.from))", _ONE_SOURCE, field=".from"),
            Rule("has(self.from) || !(has(self.through) || has(self.before) || has(self.step))", _NO_START),
            *SPAN_RULES,
        )
    )

    values: Values | None = None
    """The values, each as its canonical text; instead of `from`."""

    start: TimeText | None = Field(None, alias="from")
    """The first day (2013-01-01) or instant (2013-01-01T00:00:00Z), included; it must lie on the step's grid."""

    through: TimeText | None = None
    """The last day or instant, included; instead of `before`."""

    before: TimeText | None = None
    """The first day or instant that is no longer included; instead of `through`."""

    step: StepText | None = None
    """Distance of two neighbours: hour, day, week, month, quarter, year, or a number of them such as `2 weeks`;
    unset means one unit of the dimension."""

    exclude: Exclude | None = None
    """What to leave out of them."""

    @model_validator(mode="after")
    def _one_source(self) -> DimensionValues:
        if self.values is not None and self.start is not None:
            raise refusal("from", self.start, _ONE_SOURCE)
        without_start = self.through or self.before or self.step
        if without_start and self.start is None:
            raise refusal("", without_start, _NO_START)
        check_span(self.start, self.through, self.before)
        return self


class Retry(Model):
    """What happens to a partition that failed."""

    limit: Annotated[StrictInt, Field(ge=0, le=100)] = 2
    """Attempts after the first one; evictions, quota and lost nodes use up none. 0 means that one failure is final."""

    backoff_seconds: Annotated[StrictInt, Field(ge=0, le=3_600)] = 10
    """Seconds before the second attempt; doubled for each further one."""

    max_backoff_seconds: Annotated[StrictInt, Field(ge=1, le=86_400)] = 600
    """Seconds between two attempts at most."""


class FailureBudget(Model):
    """How many partitions may fail for good before nothing more is handed out."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            Rule("has(self.count) != has(self.percent)", _ONE_MEASURE, field=".count"),
        )
    )

    count: Annotated[StrictInt, Field(ge=0, le=10_000_000)] | None = None
    """So many may fail; 0 stops at the first one. Instead of `percent`."""

    percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = None
    """So many of a hundred may fail: of the window where one is set, else of all partitions. Instead of `count`."""

    window: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    """Only the partitions that finished last, so many of them, are looked at; unset means all."""

    @model_validator(mode="after")
    def _one_measure(self) -> FailureBudget:
        if (self.count is None) == (self.percent is None):
            raise refusal("count", self.count, _ONE_MEASURE)
        return self


Partitions = Annotated[dict[str, DimensionValues], Field(max_length=MAX_DIMENSIONS)]
Combination = Annotated[dict[str, KeyText], Field(min_length=1, max_length=MAX_DIMENSIONS)]
Combinations = Annotated[tuple[Combination, ...], Field(min_length=1, max_length=MAX_COMBINATIONS)]


class BackfillSpec(Model):
    """What is asked for: which partitions of which asset, and how they are worked off."""

    FROZEN: ClassVar[tuple[str, ...]] = (
        "asset",
        "partitions",
        "excludeCombinations",
        "keys",
        "tenant",
        "select",
    )
    """The fields that say what is asked for; they never change and make up `frozen_digest`."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            Rule(
                "self.asset == oldSelf.asset",
                f"asset cannot be changed: {_NEW_BACKFILL}",
                f"'asset cannot be changed (it was \"' + oldSelf.asset + '\"): {_NEW_BACKFILL}'",
                ".asset",
            ),
            frozen("partitions", _NEW_BACKFILL),
            frozen("excludeCombinations", _NEW_BACKFILL),
            frozen("keys", _NEW_BACKFILL),
            frozen("tenant", _NEW_BACKFILL),
            frozen_scalar("select", _NEW_BACKFILL),
            Rule("!(has(self.partitions) && has(self.keys))", _ONE_SET, field=".keys"),
            Rule("!(has(self.keys) && has(self.excludeCombinations))", _KEYS_EXCLUDE, field=".excludeCombinations"),
            Rule(
                "!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)",
                f"cancel cannot be taken back: {_NO_WAY_BACK}",
                field=".cancel",
            ),
        )
    )

    asset: ResourceName
    """Name of the Asset resource in the same namespace. Immutable."""

    partitions: Partitions | None = None
    """The values of each dimension, by its name; the set is their product. A dimension left out takes all values that
    the Asset declares. Immutable."""

    exclude_combinations: Combinations | None = None
    """Combinations to leave out of the product, each a map from dimension to value; a dimension left out of the map
    stands for all its values. Immutable."""

    keys: Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=MAX_VALUES)] | None = None
    """Serialized partition keys such as `UA|2013-01-01`, instead of `partitions`. Above about 200 KB of manifest only
    `kubectl apply --server-side` works. Immutable."""

    tenant: Identifier | None = None
    """Id of the Tenant whose rows these are, for an Asset without a tenant dimension. Immutable."""

    select: Literal["Missing", "All", "Failed"] = "Missing"
    """Which partitions of the set run: those without a success in the ledger (Missing), all, or those that failed in an
    earlier Backfill and have had no success since (Failed); the others are skipped. Immutable."""

    order: Literal["Ascending", "Descending"] = "Ascending"
    """Whether the earliest or the latest partitions are handed out first."""

    max_parallel: Annotated[StrictInt, Field(ge=1, le=10_000)] = 10
    """Batches, that is Jobs, that are open at once at most. Lowering it stops none: open ones run to their end."""

    batch_size: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    """Partitions in one batch at most; unset means sized automatically, see `targetBatchSeconds`."""

    target_batch_seconds: Annotated[StrictInt, Field(ge=1, le=86_400)] = 60
    """How long a batch shall last, in seconds, while `batchSize` is unset: sizes follow from what partitions took so
    far. Longer batches start fewer pods, shorter ones follow edits and retries sooner."""

    retry: Retry = Retry()
    """What happens to a partition that failed."""

    failure_budget: FailureBudget | None = None
    """How many partitions may fail; once more did, nothing more is handed out until the budget is raised or `resume`
    changes. Unset means any number."""

    resume: Token | None = None
    """Any text; a new value makes the failure budget overlook all failures so far, so that work goes on."""

    retry_failed: Token | None = None
    """Any text; a new value queues what failed once more, with all attempts, also after the Backfill has finished."""

    suspend: Literal["Drain", "Kill"] | None = None
    """Drain hands nothing more out and lets open Jobs run to their end; Kill stops them too, and what they had not
    finished goes back to the queue without using up an attempt. Unset it to go on."""

    cancel: StrictBool = False
    """True stops the Jobs and everything queued, for good; it cannot be taken back."""

    ready_when: Literal["Accepted", "Finished"] = "Accepted"
    """When condition Ready becomes True: as soon as the work is accepted, or only when it is finished, so that a GitOps
    pipeline waits for it."""

    @model_validator(mode="after")
    def _one_set(self) -> BackfillSpec:
        if self.keys is not None and self.partitions is not None:
            raise refusal("keys", f"{len(self.keys)} keys", _ONE_SET)
        if self.keys is not None and self.exclude_combinations is not None:
            raise refusal("excludeCombinations", f"{len(self.exclude_combinations)} entries", _KEYS_EXCLUDE)
        return self

    def frozen_part(self) -> dict[str, Any]:
        """Return the fields that never change, as JSON."""
        whole = self.to_dict()
        return {field: whole[field] for field in self.FROZEN if field in whole}

    def frozen_digest(self) -> str:
        """Return a SHA-256 in hex that is the same for equal frozen parts, whatever the order of map entries."""
        text = json.dumps(self.frozen_part(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
