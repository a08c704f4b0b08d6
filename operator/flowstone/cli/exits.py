"""What the exit codes mean; scripts and CI rely on them, and docs/operations.md has them in a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from flowstone.errors import (
    FlowStoneError,
    InvalidSpec,
    KubernetesRefused,
    KubernetesUnavailable,
    LedgerError,
    PartitionError,
)


class Exit(IntEnum):
    """The exit codes of every command of `flowstone` but `work` and `exec`."""

    OK = 0
    """It was done; a Backfill that was waited for succeeded."""

    FAILED = 1
    """The Backfill ended with failed partitions, or it is stalled and somebody has to look; or any other error."""

    USAGE = 2
    """The command or the file makes no sense, to us or to the API server; nothing was changed."""

    UNREACHABLE = 3
    """The cluster or the ledger does not answer, or is not as it has to be."""

    REFUSED = 4
    """The cluster said no: not there, deleted while it was waited for, no right, or in conflict."""

    CANCELLED = 5
    """The Backfill that was waited for was cancelled."""

    TIMEOUT = 6
    """It was not finished within the time given; it goes on."""

    INTERRUPTED = 130
    """Somebody pressed Ctrl-C; the Backfill goes on."""


_NOT_VALID = (400, 422)
"""What the API server answers when a request makes no sense."""

_PHASES = {"Succeeded": Exit.OK, "PartlyFailed": Exit.FAILED, "Failed": Exit.FAILED, "Cancelled": Exit.CANCELLED}


def of_error(error: FlowStoneError) -> Exit:
    """The exit code that goes with an error."""
    if isinstance(error, InvalidSpec | PartitionError):
        return Exit.USAGE
    if isinstance(error, KubernetesUnavailable | LedgerError):
        return Exit.UNREACHABLE
    if isinstance(error, KubernetesRefused):
        return Exit.USAGE if error.status in _NOT_VALID else Exit.REFUSED
    return Exit.FAILED


def of_backfill(resource: Mapping[str, Any]) -> Exit | None:
    """The exit code of a Backfill that is over or needs people; None while it goes on."""
    status = resource.get("status") or {}
    if not _is_current(resource):
        return None
    if is_over(resource):
        return _PHASES.get(str(status.get("phase")), Exit.FAILED)
    return Exit.FAILED if condition(resource, "Stalled") == "True" else None


def is_over(resource: Mapping[str, Any]) -> bool:
    """Whether nothing more will happen for the spec as it is."""
    return _is_current(resource) and condition(resource, "Finished") == "True"


def _is_current(resource: Mapping[str, Any]) -> bool:
    """Whether the status is about the spec as it is, not about an older one."""
    seen = (resource.get("status") or {}).get("observedGeneration")
    return bool(seen == resource["metadata"].get("generation"))


def condition(resource: Mapping[str, Any], kind: str) -> str:
    """The status of one condition: True, False, Unknown, or "" when it is absent."""
    for one in (resource.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind:
            return str(one.get("status"))
    return ""
