"""What a proof of isolation found, and how a Tenant's status says it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from flowstone.tenant.attack import Result
from flowstone.tenant.status import LONGEST, Verdict

Kind = Literal["lint", "attack", "difference"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold.

    Attributes:
        kind: Who found it: the linter, an attack, or the comparison of rows.
        name: Of the check or attack.
        detail: What was found, in words without values of rows.
    """

    kind: Kind
    name: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.kind != "attack" else f"attack {self.name}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Group:
    """What came of the attacks or checks of one sort."""

    name: str
    tried: int
    failed: int = 0
    admitted: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What one run found.

    Attributes:
        version: Of the suite.
        digest: Of the suite, SHA-256.
        at: When it ran.
        checks: How many checks, attacks and comparisons were made.
        open: What does not hold.
        admitted: Attacks that get somewhere because of what condition `Hardened` already names.
        skipped: Attacks that could not be tried.
        groups: All of it by sort, for people.
    """

    version: int
    digest: str
    at: datetime
    checks: int
    open: tuple[Finding, ...] = ()
    admitted: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """The last run of attacks, and what the linter says now.

    Attributes:
        attacked: What attacks and comparisons found, as texts.
        linted: What the linter finds now.
        checks: How many checks there were in all.
        attacks: How many of them were attacks.
        restored: Tables whose protection was restored just now; they count as open until the next look.
    """

    version: int
    digest: str
    at: datetime
    checks: int
    attacks: int = 0
    attacked: Sequence[str] = ()
    linted: Sequence[Finding] = ()
    admitted: Sequence[str] = ()
    skipped: Sequence[str] = ()
    restored: Sequence[str] = field(default=())


def verdict(standing: Standing) -> Verdict:
    """Return condition `IsolationVerified`; what is open is named, the most serious first."""
    opened = [*(str(one) for one in standing.linted), *standing.attacked]
    suite = (
        f"suite {standing.version} (sha256:{standing.digest[:12]}) at {standing.at:%Y-%m-%dT%H:%M:%SZ}: "
        f"{standing.checks} checks with {standing.attacks} attacks"
    )
    if opened:
        restored = f"; restored just now: {', '.join(standing.restored)}" if standing.restored else ""
        found = f"{suite}, {len(opened)} failed{restored}: "
        return Verdict("False", "IsolationBroken", found + shortened(opened, LONGEST - len(found)))
    return Verdict("True", "Proven", suite + "".join(_notes(standing)))


def grouped(results: Sequence[Result]) -> tuple[Group, ...]:
    """Count attacks by the first word of their ids."""
    names = dict.fromkeys(one.attack.id.partition("/")[0] for one in results)
    counts = {name: Counter(one.state for one in results if one.attack.id.startswith(f"{name}/")) for name in names}
    return tuple(
        Group(f"attacks: {name}", found.total(), found["open"], found["admitted"], found["skipped"])
        for name, found in counts.items()
    )


def _notes(standing: Standing) -> Iterator[str]:
    if standing.admitted:
        yield f"; {len(standing.admitted)} left to Hardened"
    if standing.skipped:
        yield f"; {len(standing.skipped)} not tried for want of a pooled login, or of the database's context key"


def shortened(texts: Sequence[str], room: int) -> str:
    """Join as many texts as there is room for, and say how many more there are."""
    whole = "; ".join(texts)
    if len(whole) <= room:
        return whole
    kept: list[str] = []
    for text in texts:
        if len("; ".join([*kept, text])) > room - 20:
            break
        kept.append(text)
    return "; ".join(kept or [texts[0][: max(0, room - 30)]]) + f"; and {len(texts) - max(len(kept), 1)} more"


def unknown(reason: str) -> Verdict:
    """Return the verdict while nothing is known."""
    return Verdict("Unknown", "NotProven", reason)
