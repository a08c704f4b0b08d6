"""The contract between operator and worker, version 1, read from the environment of the container.

The operator's side of it is `executor.jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowstone.errors import FlowStoneError
from flowstone.partition.dimensions import Dimension
from flowstone.worker.keys import dimension_of

VERSION = "1"
"""The contract that this worker speaks."""


class ContractError(FlowStoneError):
    """Raised when the environment is not what the operator gives a worker; do not retry."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A batch as its worker sees it.

    Attributes:
        backfill: The Backfill's uid.
        asset: The asset's identity in the ledger.
        fence: The batch's number; a result under any other is refused.
        partitions: Canonical texts of the keys, in the order in which they are worked off.
        database: Whether there is a ledger to report to.
    """

    backfill: str
    backfill_name: str
    scope: str
    asset: str
    asset_id: str
    tenant: str | None
    fence: int
    dimensions: tuple[Dimension, ...]
    partitions: tuple[str, ...]
    database: bool


def read_assignment(environment: Mapping[str, str]) -> Assignment:
    """Return the batch that the environment describes.

    Raises:
        ContractError: a variable is missing or wrong, or the operator speaks another version.
    """
    _check_version(environment)
    return Assignment(
        backfill=_given(environment, "FLOWSTONE_BACKFILL"),
        backfill_name=_given(environment, "FLOWSTONE_BACKFILL_NAME"),
        scope=_given(environment, "FLOWSTONE_SCOPE"),
        asset=_given(environment, "FLOWSTONE_ASSET"),
        asset_id=_given(environment, "FLOWSTONE_ASSET_ID"),
        tenant=environment.get("FLOWSTONE_TENANT"),
        fence=_number(environment, "FLOWSTONE_FENCE"),
        dimensions=_dimensions(_given(environment, "FLOWSTONE_DIMENSIONS")),
        partitions=_partitions(Path(_given(environment, "FLOWSTONE_PARTITIONS_FILE"))),
        database="PGHOST" in environment,
    )


def _check_version(environment: Mapping[str, str]) -> None:
    version = _given(environment, "FLOWSTONE_CONTRACT")
    if version != VERSION:
        raise ContractError(
            f"FLOWSTONE_CONTRACT: {version!r}: this image speaks contract {VERSION};"
            " build it with a release of flowstone that fits the operator's"
        )


def _given(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise ContractError(
            f"{name}: {value!r}: not set; `flowstone work` and `flowstone exec` run in Jobs that the operator makes"
        )
    return value


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _given(environment, name)
    if not text.isdecimal():
        raise ContractError(f"{name}: {text!r}: must be a number")
    return int(text)


def _dimensions(text: str) -> tuple[Dimension, ...]:
    try:
        dimensions = tuple(dimension_of(one) for one in json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"FLOWSTONE_DIMENSIONS: {text!r}: must be a list of dimensions ({error!r})") from error
    if not dimensions:
        raise ContractError(f"FLOWSTONE_DIMENSIONS: {text!r}: must name at least one dimension")
    return dimensions


def _partitions(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ContractError(f"FLOWSTONE_PARTITIONS_FILE: {str(path)!r}: cannot be read ({error})") from error
    # Only "\n" ends a line: a key may hold other characters at which splitlines() would cut.
    partitions = tuple(line for line in text.split("\n") if line)
    if not partitions:
        raise ContractError(f"FLOWSTONE_PARTITIONS_FILE: {str(path)!r}: holds no key; one is expected in each line")
    return partitions
