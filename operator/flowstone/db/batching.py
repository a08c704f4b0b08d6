"""How claimed rows are divided into batches: a pure decision.

A batch has rows of one scope, in queue order, at most `size` of them, and keys that fit into a pod's annotation
(an object's annotations may hold 256 KiB in all; half of that is the keys' share). A row whose last batch died
under it is suspect and travels alone, so that only it can be charged when it kills again; where nobody knows which row
it was, each half of the batch travels by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flowstone.backfill.records import SUSPECT

KEY_BYTES = 128 * 1024
"""Bytes of keys in one batch, at most, as they stand in the manifest."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued row that may be handed out now.

    Attributes:
        place: Where the locked row lies, to find it again.
        suspect: "" for most; else its last batch died under it, and this names those that it may travel with.
    """

    scope: str
    partition: str
    place: str
    suspect: str


@dataclass(slots=True)
class Group:
    """Rows that go into one batch."""

    scope: str
    suspect: str = ""
    rows: list[Candidate] = field(default_factory=list)
    size: int = 0
    closed: bool = False


def weight(partition: str) -> int:
    """Bytes a key takes in the manifest's JSON: its escapes, and a line end where the quotes are counted."""
    return len(json.dumps(partition))


def group(candidates: Iterable[Candidate], *, batches: int, size: int, slots: Mapping[str, int]) -> list[Group]:
    """Divide rows into batches, in the order of their first rows.

    Args:
        candidates: Rows in queue order.
        batches: How many batches may be made, over all scopes.
        size: Rows in one batch, at most.
        slots: How many batches a scope may get; a scope left out has no limit of its own.
    """
    division = _Division(batches, size, dict(slots))
    for candidate in candidates:
        division.add(candidate)
        if division.full:
            break
    return division.groups


class _Division:
    """The groups so far, and what is left to give."""

    def __init__(self, batches: int, size: int, slots: dict[str, int]) -> None:
        self.groups: list[Group] = []
        self._batches = batches
        self._size = size
        self._slots = slots
        self._current: dict[tuple[str, str], Group] = {}

    @property
    def full(self) -> bool:
        """No further group may be made and none has room."""
        return len(self.groups) >= self._batches and not self._current

    def add(self, row: Candidate) -> None:
        """Put a row where it fits, or leave it in the queue."""
        cost = weight(row.partition)
        target = self._current.get((row.scope, row.suspect))
        if target and target.size + cost > KEY_BYTES:
            self._retire(target)
            target = None
        target = target or self._open(row)
        if target is None:
            return
        target.rows.append(row)
        target.size += cost
        if len(target.rows) >= self._size and not target.closed:
            self._retire(target)

    def _open(self, row: Candidate) -> Group | None:
        """A new group, if the caps allow one."""
        if len(self.groups) >= self._batches or self._slots.get(row.scope, 1) < 1:
            return None
        if row.scope in self._slots:
            self._slots[row.scope] -= 1
        made = Group(row.scope, row.suspect, closed=row.suspect == SUSPECT)
        self.groups.append(made)
        if not made.closed:
            self._current[row.scope, row.suspect] = made
        return made

    def _retire(self, target: Group) -> None:
        """Close a group: what comes next in its scope starts another one."""
        target.closed = True
        self._current.pop((target.scope, target.suspect), None)
