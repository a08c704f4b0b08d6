"""Runs the catalogue linter, as whoever is connected; the operator may ask all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowstone.db.connection import Transaction
from flowstone.tenant.linter import Check
from flowstone.tenant.suite import CHECKS


@dataclass(frozen=True, slots=True)
class Offence:
    """What a check found.

    Attributes:
        what: The objects, in words.
        tables: OIDs of the tables concerned that `flowstone.restore_protection` can put right.
    """

    check: Check
    what: tuple[str, ...]
    tables: tuple[int, ...]


def lint(tx: Transaction) -> list[Offence]:
    """Return what is wrong; nothing is, when the list is empty.

    Args:
        tx: Of a session whose search path is `pg_catalog, pg_temp`, as the pool's are.
    """
    offences = ((check, tx.rows(check.sql)) for check in CHECKS)
    return [_offence(check, rows) for check, rows in offences if rows]


def _offence(check: Check, rows: Sequence[tuple[str, int | None]]) -> Offence:
    tables = {oid for _, oid in rows if oid is not None} if check.restorable else set()
    return Offence(check, tuple(sorted({what for what, _ in rows})), tuple(sorted(tables)))
