"""Specs of every sort, about as often good as bad, from small pools of values at the edges of the rules."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.unit.api.manifests import POD

MOMENTS = st.sampled_from(
    [
        "2013-01-01",
        "2013-01-31",
        "2013-02-30",
        "2012-02-29",
        "2013-1-1",
        "2013-01-01T00:00:00Z",
        "2013-01-01T06:00:00Z",
        "",
    ]
)
STEPS = st.sampled_from(["day", "2 weeks", "0 days", "fortnight", "hours", "12345 days"])
TEXTS = st.lists(st.sampled_from(["UA", "2013-01-01", "", "a|b"]), max_size=2)
SPANS = st.fixed_dictionaries({}, optional={"from": MOMENTS, "through": MOMENTS, "before": MOMENTS})
EXCLUDES = st.fixed_dictionaries({}, optional={"values": TEXTS, "ranges": st.lists(SPANS, max_size=2)})
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "values": TEXTS,
        "from": MOMENTS,
        "through": MOMENTS,
        "before": MOMENTS,
        "step": STEPS,
        "exclude": EXCLUDES,
    },
)
NUMBERS = st.sampled_from([-1, 0, 1, 100, 101, 10_000, 10_001, "5", 1.5, True])
RETRIES = st.fixed_dictionaries(
    {}, optional={"limit": NUMBERS, "backoffSeconds": NUMBERS, "maxBackoffSeconds": NUMBERS}
)
BUDGETS = st.fixed_dictionaries({}, optional={"count": NUMBERS, "percent": NUMBERS, "window": NUMBERS})
TOKENS = st.sampled_from(["again", "", "a" * 64, "a" * 65, 5])
BACKFILLS = st.fixed_dictionaries(
    {"asset": st.sampled_from(["daily", "Daily", "daily.v2", "-"])},
    optional={
        "partitions": st.dictionaries(st.sampled_from(["day", "carrier", "a b"]), ENTRIES, max_size=2),
        "excludeCombinations": st.lists(st.dictionaries(st.just("day"), st.just("UA")), max_size=2),
        "keys": TEXTS,
        "select": st.sampled_from(["Missing", "All", "Failed", "Some"]),
        "maxParallel": NUMBERS,
        "batchSize": NUMBERS,
        "targetBatchSeconds": NUMBERS,
        "retry": RETRIES,
        "failureBudget": BUDGETS,
        "resume": TOKENS,
        "retryFailed": TOKENS,
        "suspend": st.sampled_from(["Drain", "Kill", "drain", True]),
        "cancel": st.sampled_from([True, False, "true"]),
    },
)
DIMENSIONS = st.fixed_dictionaries(
    {"name": st.sampled_from(["day", "region", "a-b", ""]), "type": st.sampled_from(["date", "datetime", "string"])},
    optional={
        "unit": st.sampled_from(["hour", "day", "week", "minute"]),
        "timezone": st.sampled_from(["UTC", "Europe/Berlin", ""]),
        "values": TEXTS,
        "range": st.fixed_dictionaries(
            {}, optional={"from": MOMENTS, "through": MOMENTS, "before": MOMENTS, "step": STEPS}
        ),
    },
)
ASSETS = st.fixed_dictionaries(
    {"partitionedBy": st.lists(DIMENSIONS, max_size=2), "template": st.sampled_from([POD, {}, {"spec": {}}])},
    optional={"id": st.sampled_from(["a", "_a", "A.b-c_d", "a" * 63, "a" * 64])},
)
