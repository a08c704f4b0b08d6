"""What one attack is, and what came of it. Pure.

An attack is data: what a tenant's login does, and the outcomes that mean that it got nowhere. An outcome is a word:
`<n> rows` for a statement that returned or changed so many, `done` for one that does neither, else the SQLSTATE of
the error. Only the outcomes that are written down count: an attack that fails for a reason nobody thought of is
reported, as it may have failed by luck or by a slip of the pen.

It runs on a database that people use. So whatever works by mistake is rolled back, is aimed at the canaries' rows,
or fails right behind the check of the right, as making a database that exists does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Principal = Literal["tenant", "pool"]

REFUSED = "42501"
"""insufficient_privilege"""

NOTHING = "0 rows"

DATABASE = "PUBLIC may connect to a database"
FUNCTIONS = "PUBLIC may call functions that reach other sessions"
"""Measures of `hardening`: where one is open, what depends on it is Hardened's to report."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        id: Its name, for ever.
        statements: Done in one transaction, which is rolled back; the outcome is the last one's, or the first error.
            `{name}` stands for a word of `Cage.words`.
        expected: Outcomes that mean that it got nowhere.
        principal: Whose login does it: a tenant's own, or a pooled one.
        hardening: Measure without which it works, and is admitted.
        keyed: It needs a context signed with the database's key.
    """

    id: str
    statements: tuple[str, ...]
    expected: tuple[str, ...] = (REFUSED,)
    principal: Principal = "tenant"
    hardening: str | None = None
    keyed: bool = False


def refused(prefix: str, statements: Mapping[str, str], *, hardening: str | None = None) -> list[Attack]:
    """Return attacks of one statement each that the server must refuse for want of a right."""
    return [Attack(f"{prefix}/{name}", (text,), hardening=hardening) for name, text in statements.items()]


def nothing(prefix: str, statements: Mapping[str, str]) -> list[Attack]:
    """Return attacks of one statement each that must find or change no row."""
    return [Attack(f"{prefix}/{name}", (text,), (NOTHING,)) for name, text in statements.items()]


def after(prefix: str, preparations: Mapping[str, Sequence[str]], last: str, *expected: str) -> list[Attack]:
    """Return attacks that end with the same statement and begin each in its own way."""
    return [
        Attack(f"{prefix}/{name}", (*before, last), expected or (NOTHING,)) for name, before in preparations.items()
    ]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an attack.

    Attributes:
        outcome: What happened, as told above; empty when it was not tried.
        state: `held`; `open`: it got somewhere; `admitted`: it did, and `Hardened` says why; `skipped`.
    """

    attack: Attack
    outcome: str
    state: Literal["held", "open", "admitted", "skipped"]


def judged(attack: Attack, outcome: str, left_open: frozenset[str]) -> Result:
    """Judge an outcome.

    Args:
        attack: What was tried.
        outcome: What happened.
        left_open: Names of the measures of `hardening` that are open.
    """
    if outcome in attack.expected:
        return Result(attack, outcome, "held")
    return Result(attack, outcome, "admitted" if attack.hardening in left_open else "open")
