"""What a template promises about its partitions' effects, by the first words of its containers."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.executor.delivery import delivery_of


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"command": ["flowstone", "work", "a:b"]}, "ExactlyOnce"),
        ({"args": ["work", "a:b"]}, "ExactlyOnce"),
        ({"command": ["flowstone", "exec", "--", "true"]}, "AtLeastOnce"),
        ({"command": ["tini", "--", "flowstone", "work", "a:b"]}, "AtLeastOnce"),
        ({}, "AtLeastOnce"),
    ],
    ids=["work", "entry point", "exec", "init in the command", "plain image"],
)
def test_only_work_promises_once(container: dict[str, Any], expected: str) -> None:
    """`flowstone` may be the image's entry point, with an init before it there; an init in the command is not known."""
    assert delivery_of({"spec": {"containers": [container]}}) == expected
