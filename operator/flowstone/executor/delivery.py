"""Whether a partition's effects are certain to happen once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Delivery = Literal["ExactlyOnce", "AtLeastOnce"]


def delivery_of(template: Mapping[str, Any]) -> Delivery:
    """What a pod template promises.

    Only `flowstone work` hands a function the connection on which its success is recorded in the same transaction;
    any other program may be killed between its writes and its report.
    """
    containers = template.get("spec", {}).get("containers") or []
    once = all(_words(container)[:1] == ["work"] for container in containers)
    return "ExactlyOnce" if containers and once else "AtLeastOnce"


def _words(container: Mapping[str, Any]) -> Sequence[str]:
    """What the container runs, without the `flowstone` that an image's entry point may stand for."""
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    return words[1:] if words[:1] and words[0].rsplit("/", 1)[-1] == "flowstone" else words
