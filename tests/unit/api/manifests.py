"""Good and bad manifests, judged twice: by the models (here) and by a real API server (tests/e2e/test_crds.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

POD: Json = {"spec": {"containers": [{"name": "main", "image": "localhost/flights:1"}]}}


@dataclass(frozen=True)
class Case:
    """A spec, and what is said of it.

    Attributes:
        field: Path of the field that the answer must name, or "" when the spec is good.
        says: Pieces of text that the answer must contain: the value, where it has one, and the remedy.
    """

    name: str
    kind: str
    spec: Mapping[str, Any]
    field: str = ""
    says: tuple[str, ...] = ()


def backfill(**spec: Any) -> Json:
    """A Backfill's spec of the asset `daily`, with these fields."""
    return {"asset": "daily", **spec}


def days(**entry: Any) -> Json:
    """A Backfill's spec over one dimension `day`."""
    return backfill(partitions={"day": entry})


def asset(*dimensions: Json, **spec: Any) -> Json:
    """An Asset's spec with these dimensions, or with one of dates."""
    return {"partitionedBy": list(dimensions) or [{"name": "day", "type": "date"}], "template": POD, **spec}


CALENDAR = "write a day that exists as 2013-02-28, or an instant as 2013-02-28T00:00:00Z"
NOT_BOTH = "keep one of them"

GOOD = (
    Case("bare", "Backfill", backfill()),
    Case("year", "Backfill", days(**{"from": "2013-01-01", "through": "2013-12-31"})),
    Case("one-day", "Backfill", days(**{"from": "2013-01-01", "through": "2013-01-01"})),
    Case("leap-day", "Backfill", days(**{"from": "2012-02-29", "before": "2012-03-01"})),
    Case("leap-century", "Backfill", days(**{"from": "2000-02-29", "through": "2000-02-29"})),
    Case("hours", "Backfill", days(**{"from": "2013-01-01T00:00:00Z", "before": "2013-01-01T06:00:00Z"})),
    Case("step", "Backfill", days(**{"from": "2013-01-07", "through": "2013-12-30", "step": "2 weeks"})),
    Case("values", "Backfill", days(values=["2013-01-01", "2013-01-05"])),
    Case("only-exclude", "Backfill", days(exclude={"values": ["2013-01-01"]})),
    Case(
        "exclude",
        "Backfill",
        days(
            **{"from": "2013-01-01", "through": "2013-12-31"},
            exclude={"values": ["2013-02-09"], "ranges": [{"from": "2013-05-01", "before": "2013-06-01"}]},
        ),
    ),
    Case("keys", "Backfill", backfill(keys=["UA|2013-01-01", "DL|2013-01-02"])),
    Case(
        "combinations",
        "Backfill",
        backfill(
            partitions={"carrier": {"values": ["UA", "DL"]}, "day": {"values": ["2013-01-01"]}},
            excludeCombinations=[{"carrier": "UA", "day": "2013-01-01"}],
        ),
    ),
    Case(
        "everything-live",
        "Backfill",
        backfill(
            select="All",
            order="Descending",
            maxParallel=10_000,
            batchSize=1,
            targetBatchSeconds=86_400,
            retry={"limit": 0, "backoffSeconds": 0, "maxBackoffSeconds": 1},
            suspend="Kill",
            failureBudget={"percent": 100, "window": 1_000_000},
            resume="a" * 64,
            retryFailed="2026-11-24T10:00:00Z",
            cancel=True,
            readyWhen="Finished",
        ),
    ),
    Case("failed", "Backfill", backfill(select="Failed")),
    Case("plain-asset", "Asset", asset()),
    Case("asset-id", "Asset", asset(id="Daily_report.v2")),
    Case(
        "three-dimensions",
        "Asset",
        asset(
            {"name": "region", "type": "string", "values": ["eu", "us"]},
            {"name": "hour", "type": "datetime", "timezone": "Europe/Berlin"},
            {
                "name": "month",
                "type": "date",
                "unit": "month",
                "range": {"from": "2013-01-01", "through": "2013-12-01"},
            },
        ),
    ),
    Case("eight-dimensions", "Asset", asset(*({"name": f"d{i}", "type": "string"} for i in range(8)))),
)

BAD_BACKFILLS = (
    Case("no-asset", "Backfill", {}, "spec.asset", ("equired",)),
    Case("asset-name", "Backfill", {"asset": "Daily Delays"}, "spec.asset", ("Daily Delays", "match")),
    Case("no-parallel", "Backfill", backfill(maxParallel=0), "spec.maxParallel", ("0", "greater than or equal to 1")),
    Case("parallel-high", "Backfill", backfill(maxParallel=10_001), "spec.maxParallel", ("10001", "10000")),
    Case("parallel-text", "Backfill", backfill(maxParallel="5"), "spec.maxParallel", ("integer",)),
    Case("batch-zero", "Backfill", backfill(batchSize=0), "spec.batchSize", ("0", "greater than or equal to 1")),
    Case("target-zero", "Backfill", backfill(targetBatchSeconds=0), "spec.targetBatchSeconds", ("0", "equal to 1")),
    Case("target-high", "Backfill", backfill(targetBatchSeconds=86_401), "spec.targetBatchSeconds", ("86401", "86400")),
    Case("retry-high", "Backfill", backfill(retry={"limit": 101}), "spec.retry.limit", ("101", "100")),
    Case("select", "Backfill", backfill(select="Some"), "spec.select", ("Some", "Missing", "All", "Failed")),
    Case("order", "Backfill", backfill(order="Random"), "spec.order", ("Random", "Ascending", "Descending")),
    Case("cancel-text", "Backfill", backfill(cancel="yes"), "spec.cancel", ("bool",)),
    Case("unknown-field", "Backfill", backfill(maxParalel=5), "spec.maxParalel", ()),
    Case("suspend", "Backfill", backfill(suspend=True), "spec.suspend", ("Drain", "Kill")),
    Case("no-budget", "Backfill", backfill(failureBudget={}), "spec.failureBudget.count", ("either count or percent",)),
    Case(
        "two-budgets",
        "Backfill",
        backfill(failureBudget={"count": 1, "percent": 1}),
        "spec.failureBudget.count",
        ("either count or percent",),
    ),
    Case("percent", "Backfill", backfill(failureBudget={"percent": 101}), "spec.failureBudget.percent", ("101", "100")),
    Case(
        "window", "Backfill", backfill(failureBudget={"count": 1, "window": 0}), "spec.failureBudget.window", ("0", "1")
    ),
    Case("resume-long", "Backfill", backfill(resume="a" * 65), "spec.resume", ("64",)),
    Case("retry-empty", "Backfill", backfill(retryFailed=""), "spec.retryFailed", ("at least 1",)),
    Case("later-field", "Backfill", backfill(weight=5), "spec.weight", ()),
    Case("snake-case", "Backfill", backfill(max_parallel=5), "spec.max_parallel", ()),
    Case("no-keys", "Backfill", backfill(keys=[]), "spec.keys", ("at least 1",)),
    Case("empty-value", "Backfill", days(values=[""]), "spec.partitions.day.values.0", ("at least 1",)),
    Case(
        "keys-and-partitions",
        "Backfill",
        backfill(keys=["2013-01-01"], partitions={"day": {"values": ["2013-01-01"]}}),
        "spec.keys",
        ("partitions and keys are both set", NOT_BOTH),
    ),
    Case(
        "keys-and-combinations",
        "Backfill",
        backfill(keys=["2013-01-01"], excludeCombinations=[{"day": "2013-01-01"}]),
        "spec.excludeCombinations",
        ("leave those keys out of keys",),
    ),
    Case(
        "no-such-day",
        "Backfill",
        days(**{"from": "2013-02-01", "through": "2013-02-30"}),
        "spec.partitions.day.through",
        ("2013-02-30", CALENDAR),
    ),
    Case(
        "no-leap-year",
        "Backfill",
        days(**{"from": "1900-02-29", "through": "1900-03-01"}),
        "spec.partitions.day.from",
        ("1900-02-29", CALENDAR),
    ),
    Case(
        "sloppy-day",
        "Backfill",
        days(**{"from": "2013-1-1", "through": "2013-12-31"}),
        "spec.partitions.day.from",
        ("2013-1-1", CALENDAR),
    ),
    Case(
        "hour-24",
        "Backfill",
        days(**{"from": "2013-01-01T00:00:00Z", "before": "2013-01-01T24:00:00Z"}),
        "spec.partitions.day.before",
        ("2013-01-01T24:00:00Z", CALENDAR),
    ),
    Case(
        "offset",
        "Backfill",
        days(**{"from": "2013-01-01T00:00:00+01:00", "before": "2013-01-02T00:00:00Z"}),
        "spec.partitions.day.from",
        ("2013-01-01T00:00:00+01:00", CALENDAR),
    ),
    Case(
        "year-zero",
        "Backfill",
        days(**{"from": "0000-01-01", "through": "2013-12-31"}),
        "spec.partitions.day.from",
        ("0000-01-01", CALENDAR),
    ),
    Case(
        "reversed",
        "Backfill",
        days(**{"from": "2013-12-31", "through": "2013-01-01"}),
        "spec.partitions.day.from",
        ("2013-12-31 is later than through 2013-01-01", "write the earlier one in from"),
    ),
    Case(
        "empty-range",
        "Backfill",
        days(**{"from": "2013-01-01", "before": "2013-01-01"}),
        "spec.partitions.day.from",
        ("2013-01-01 is not earlier than before 2013-01-01", "write the earlier one in from"),
    ),
    Case(
        "mixed-forms",
        "Backfill",
        days(**{"from": "2013-01-01", "through": "2013-01-02T00:00:00Z"}),
        "spec.partitions.day.through",
        ("2013-01-01", "2013-01-02T00:00:00Z", "write both as days"),
    ),
    Case(
        "no-end",
        "Backfill",
        days(**{"from": "2013-01-01"}),
        "spec.partitions.day.from",
        ("2013-01-01", "write either through", "or before"),
    ),
    Case(
        "two-ends",
        "Backfill",
        days(**{"from": "2013-01-01", "through": "2013-01-02", "before": "2013-01-03"}),
        "spec.partitions.day.from",
        ("2013-01-01", "write either through", "or before"),
    ),
    Case("no-start", "Backfill", days(through="2013-01-02"), "spec.partitions.day", ("write the first day",)),
    Case("step-alone", "Backfill", days(step="day"), "spec.partitions.day", ("write the first day",)),
    Case(
        "values-and-range",
        "Backfill",
        days(values=["2013-01-01"], **{"from": "2013-01-01", "through": "2013-01-02"}),
        "spec.partitions.day.from",
        ("values and from are both set", NOT_BOTH),
    ),
    Case(
        "step",
        "Backfill",
        days(**{"from": "2013-01-01", "through": "2013-01-02", "step": "0 days"}),
        "spec.partitions.day.step",
        ("0 days", "write hour, day, week"),
    ),
    Case(
        "excluded-range",
        "Backfill",
        days(exclude={"ranges": [{"from": "2013-06-31", "through": "2013-07-01"}]}),
        "spec.partitions.day.exclude.ranges.0.from",
        ("2013-06-31", CALENDAR),
    ),
    Case(
        "excluded-reversed",
        "Backfill",
        days(exclude={"ranges": [{"from": "2013-07-02", "through": "2013-07-01"}]}),
        "spec.partitions.day.exclude.ranges.0.from",
        ("2013-07-02 is later than through 2013-07-01",),
    ),
)

BAD_ASSETS = (
    Case("no-dimension", "Asset", asset(partitionedBy=[]), "spec.partitionedBy", ("at least 1",)),
    Case("no-template", "Asset", {"partitionedBy": asset()["partitionedBy"]}, "spec.template", ("equired",)),
    Case("no-pod", "Asset", asset(template={"metadata": {}}), "spec.template.spec", ()),
    Case("no-container", "Asset", asset(template={"spec": {"containers": []}}), "spec.template.spec.containers", ()),
    Case("id", "Asset", asset(id="-daily"), "spec.id", ("-daily", "write 1 to 63 letters")),
    Case(
        "dimension-name",
        "Asset",
        asset({"name": "flight day", "type": "date"}),
        "spec.partitionedBy.0.name",
        ("flight day", "write 1 to 63 letters"),
    ),
    Case(
        "type",
        "Asset",
        asset({"name": "day", "type": "int"}),
        "spec.partitionedBy.0.type",
        ("int", "date", "datetime", "string"),
    ),
    Case(
        "hours-of-dates",
        "Asset",
        asset({"name": "day", "type": "date", "unit": "hour"}),
        "spec.partitionedBy.0.unit",
        ("a date has no hours", "use type datetime"),
    ),
    Case(
        "zone-of-strings",
        "Asset",
        asset({"name": "region", "type": "string", "timezone": "UTC"}),
        "spec.partitionedBy.0",
        ("region", "only a dimension of time has unit, timezone or range"),
    ),
    Case(
        "values-of-tenants",
        "Asset",
        asset({"name": "airline", "type": "tenant", "values": ["UA"]}),
        "spec.partitionedBy.0.values",
        ("the Tenants of the namespace", "remove values"),
    ),
    Case(
        "two-sources",
        "Asset",
        asset(
            {
                "name": "day",
                "type": "date",
                "values": ["2013-01-01"],
                "range": {"from": "2013-01-01", "through": "2013-01-02"},
            }
        ),
        "spec.partitionedBy.0.range",
        ("values and range are both set", NOT_BOTH),
    ),
    Case(
        "declared-reversed",
        "Asset",
        asset({"name": "day", "type": "date", "range": {"from": "2013-01-02", "through": "2013-01-01"}}),
        "spec.partitionedBy.0.range.from",
        ("2013-01-02 is later than through 2013-01-01",),
    ),
    Case(
        "too-many-dimensions",
        "Asset",
        asset(*({"name": f"d{i}", "type": "string"} for i in range(9))),
        "spec.partitionedBy",
        ("8",),
    ),
    Case(
        "same-name-twice",
        "Asset",
        asset({"name": "day", "type": "date"}, {"name": "day", "type": "string"}),
        "spec.partitionedBy",
        ("day",),
    ),
)

BAD = BAD_BACKFILLS + BAD_ASSETS


def resource(case: Case) -> Json:
    """The whole resource of a case, named after it."""
    return {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": case.kind,
        "metadata": {"name": case.name},
        "spec": dict(case.spec),
    }
