"""FlowStone runs an asset over many partitions, and keeps every tenant's data apart in Postgres."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowstone.client import FlowStone
    from flowstone.worker.context import Partition

__all__ = ["FlowStone", "Partition"]

_HOMES = {"FlowStone": "flowstone.client", "Partition": "flowstone.worker.context"}
"""Where each public name is defined; it is imported at its first use, because a worker's start counts."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
