"""What a worker reads from its environment."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from flowstone.backfill.records import ClaimedBatch
from flowstone.errors import LedgerUnavailable
from flowstone.executor.jobs import Work, job_manifest
from flowstone.worker.contract import ContractError, read_assignment
from flowstone.worker.execute import variables
from flowstone.worker.work import context

DIMENSIONS: list[dict[str, Any]] = [
    {"name": "customer", "type": "tenant", "unit": None, "timezone": None},
    {"name": "flight-carrier", "type": "string", "unit": None, "timezone": None},
    {"name": "day", "type": "date", "unit": None, "timezone": "Europe/Berlin"},
]
KEYS = ("acme|U%7CA|2013-03-31", "acme|ü ' $(x)|2013-04-01")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables and the file that the operator's own manifest gives a worker, as the kubelet would."""
    claimed = ClaimedBatch(7, "n/c1/ns", "job", KEYS, "digest")
    work = Work("delays", "ns", "5f0c", "asset", "c1/ns/asset", DIMENSIONS, {"spec": {"containers": [{}]}})
    pod = job_manifest(claimed, work, secret=None)["spec"]["template"]
    path = tmp_path / "partitions"
    path.write_text(pod["metadata"]["annotations"]["flowstone.dev/partitions"], encoding="utf-8")
    found = {one["name"]: one["value"].replace("$$", "$") for one in pod["spec"]["containers"][0]["env"]}
    return {**found, "FLOWSTONE_PARTITIONS_FILE": str(path)}


def test_worker_reads_what_the_operator_writes(environment: dict[str, str]) -> None:
    """Operator and worker agree on the contract: what the manifest carries arrives as it was."""
    found = read_assignment(environment)
    assert (found.fence, found.scope, found.asset, found.asset_id) == (7, "n/c1/ns", "c1/ns/asset", "asset")
    assert (found.backfill, found.backfill_name, found.tenant) == ("5f0c", "delays", None)
    assert found.partitions == KEYS
    assert [one.name for one in found.dimensions] == ["customer", "flight-carrier", "day"]
    assert not found.database


def test_database_is_there_when_libpq_has_a_host(environment: dict[str, str]) -> None:
    """PGHOST is what tells that there is a ledger to report to."""
    assert read_assignment({**environment, "PGHOST": "db"}).database


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FLOWSTONE_CONTRACT": "2"}, "FLOWSTONE_CONTRACT: '2'"),
        ({"FLOWSTONE_CONTRACT": ""}, "not set"),
        ({"FLOWSTONE_FENCE": "x"}, "FLOWSTONE_FENCE: 'x'"),
        ({"FLOWSTONE_FENCE": ""}, "not set"),
        ({"FLOWSTONE_DIMENSIONS": "{"}, "FLOWSTONE_DIMENSIONS"),
        ({"FLOWSTONE_DIMENSIONS": "[]"}, "at least one dimension"),
        ({"FLOWSTONE_DIMENSIONS": '[{"name": "a"}]'}, "KeyError"),
        ({"FLOWSTONE_DIMENSIONS": '[{"name": "a", "type": "colour"}]'}, "no such type"),
        ({"FLOWSTONE_PARTITIONS_FILE": "/nowhere"}, "cannot be read"),
        ({"FLOWSTONE_PARTITIONS_FILE": "/dev/null"}, "holds no key"),
    ],
)
def test_broken_contract_is_named(environment: dict[str, str], changes: dict[str, str], words: str) -> None:
    """A missing or wrong variable is named with its value, instead of a traceback later."""
    with pytest.raises(ContractError, match="FLOWSTONE_") as refused:
        read_assignment({**environment, **changes})
    assert words in str(refused.value)


def test_partition_is_typed_and_has_its_window(environment: dict[str, str]) -> None:
    """A function gets typed values, by dimension too, and the window of the local day: 23 hours in spring."""
    found = context(read_assignment(environment), KEYS[0], 2, None)
    assert found.key == ("acme", "U|A", date(2013, 3, 31))
    assert found.values == {"customer": "acme", "flight-carrier": "U|A", "day": date(2013, 3, 31)}
    assert found.window == (datetime(2013, 3, 30, 23, tzinfo=UTC), datetime(2013, 3, 31, 22, tzinfo=UTC))
    assert (found.text, found.attempt, found.asset, found.backfill) == (KEYS[0], 2, "asset", "delays")


@pytest.mark.parametrize("types", [["string"], ["date", "datetime"]])
def test_no_window_without_exactly_one_dimension_of_time(environment: dict[str, str], types: list[str]) -> None:
    """Without a dimension of time there is no window, and with two nobody could say which."""
    dimensions = json.dumps([{"name": kind, "type": kind} for kind in types])
    key = {"string": "x", "date": "2013-01-01", "datetime": "2013-01-01T00:00:00Z"}
    assignment = read_assignment({**environment, "FLOWSTONE_DIMENSIONS": dimensions})
    assert context(assignment, "|".join(key[kind] for kind in types), 1, None).window is None


def test_connection_is_refused_where_there_is_no_database(environment: dict[str, str]) -> None:
    """A function that wants a connection where there is none learns which variable is missing."""
    found = context(read_assignment(environment), KEYS[0], 1, None)
    with pytest.raises(LedgerUnavailable, match="PGHOST"):
        _ = found.connection


def test_program_finds_the_partition_in_its_environment(environment: dict[str, str]) -> None:
    """`exec` gives each dimension under its own name, decoded, and the window in UTC; no commit without a ledger."""
    assert variables(read_assignment(environment), KEYS[0], 3) == {
        "FLOWSTONE_PARTITION": "acme|U%7CA|2013-03-31",
        "FLOWSTONE_PARTITION_CUSTOMER": "acme",
        "FLOWSTONE_PARTITION_FLIGHT_CARRIER": "U|A",
        "FLOWSTONE_PARTITION_DAY": "2013-03-31",
        "FLOWSTONE_WINDOW_START": "2013-03-30T23:00:00Z",
        "FLOWSTONE_WINDOW_END": "2013-03-31T22:00:00Z",
        "FLOWSTONE_ATTEMPT": "3",
    }
