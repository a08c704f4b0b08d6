"""What a proof says, and that the suite is what its digest stands for; pure."""

from __future__ import annotations

import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flowstone.errors import LedgerUnavailable
from flowstone.tenant.attack import DATABASE, FUNCTIONS, Attack, judged
from flowstone.tenant.hardening import MEASURES
from flowstone.tenant.proof import Finding, Standing, grouped, shortened, unknown, verdict
from flowstone.tenant.status import LONGEST, Findings, Verdict
from flowstone.tenant.suite import ATTACKS, CHECKS, digest
from flowstone.tenant.verdicts import Verdicts

STANDING = Standing(1, "0123456789abcdef" * 4, datetime(2026, 11, 24, 12, tzinfo=UTC), 313, 280)
WORDS = {
    "own", "victim", "own_scope", "victim_scope", "victim_role", "victim_name", "victim_id", "victim_pid",
    "victim_fence", "own_fence", "secret", "database", "forged", "signed", "stretched", "expired", "foreign_key",
}  # fmt: skip


def test_a_sound_standing_is_true_and_says_what_was_done() -> None:
    """Version, beginning of the digest, time and number of checks stand in the message."""
    assert verdict(STANDING) == Verdict(
        "True", "Proven", "suite 1 (sha256:0123456789ab) at 2026-11-24T12:00:00Z: 313 checks with 280 attacks"
    )


def test_what_was_left_out_is_told() -> None:
    """Attacks that Hardened answers for, and those that could not be tried, are counted in the message."""
    message = verdict(replace(STANDING, admitted=["a", "b"], skipped=["c"])).message
    assert message.endswith(
        "313 checks with 280 attacks; 2 left to Hardened; "
        "1 not tried for want of a pooled login, or of the database's context key"
    )


def test_what_is_open_is_named_the_linters_findings_first() -> None:
    """One finding of either kind is enough for False."""
    linted = Finding("lint", "row security is off", "public.booking")
    found = verdict(replace(STANDING, linted=[linted], attacked=["attack read/all: 1 rows, not 0 rows"]))
    assert (found.truth, found.reason) == ("False", "IsolationBroken")
    assert found.message.endswith(
        "313 checks with 280 attacks, 2 failed: "
        "row security is off: public.booking; attack read/all: 1 rows, not 0 rows"
    )
    assert verdict(replace(STANDING, attacked=["x"])).truth == "False"


def test_many_findings_fit_into_a_status() -> None:
    """The message keeps within a condition's length, and says how many more there are."""
    message = verdict(replace(STANDING, attacked=[f"attack number {n}: 1 rows" for n in range(200)])).message
    assert len(message) <= LONGEST
    assert message.count("attack number") + int(message.rpartition(" and ")[2].split()[0]) == 200


def test_one_long_finding_is_cut() -> None:
    """Even the first one may be longer than there is room for."""
    assert shortened(["x" * 100, "y"], 50) == "x" * 20 + "; and 1 more"
    assert shortened(["x", "y"], 50) == "x; y"


@pytest.mark.parametrize(
    ("outcome", "left_open", "state"),
    [
        ("42501", frozenset(), "held"),
        ("1 rows", frozenset(), "open"),
        ("42P01", frozenset(), "open"),
        ("1 rows", frozenset({DATABASE}), "admitted"),
        ("1 rows", frozenset({FUNCTIONS}), "open"),
    ],
)
def test_only_expected_outcomes_count(outcome: str, left_open: frozenset[str], state: str) -> None:
    """An attack that fails for another reason is open; one that Hardened admits is that only by its own measure."""
    assert judged(Attack("object/x", ("SELECT 1",), hardening=DATABASE), outcome, left_open).state == state


def test_attacks_are_counted_by_sort() -> None:
    """Each attack belongs to the sort that its id begins with, and to no other."""
    groups = grouped([judged(attack, attack.expected[0], frozenset()) for attack in ATTACKS])
    assert sum(one.tried for one in groups) == len(ATTACKS)
    assert sum(one.failed for one in groups) == 0


def test_ids_are_unique_and_words_are_known() -> None:
    """A twin would hide behind its sibling; an unknown word would break the whole run."""
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    used = {
        name
        for attack in ATTACKS
        for statement in attack.statements
        for _, name, _, _ in string.Formatter().parse(statement)
        if name is not None
    }
    assert used <= WORDS


def test_what_attacks_are_admitted_by_are_measures() -> None:
    """The name of a measure that nobody takes would admit nothing, or everything."""
    names = {measure.name for measure in MEASURES}
    assert {attack.hardening for attack in ATTACKS} - {None} <= names


def test_every_expected_outcome_can_happen() -> None:
    """An outcome is a number of rows, `done`, or five characters of SQLSTATE."""
    for outcome in {one for attack in ATTACKS for one in attack.expected}:
        assert outcome == "done" or outcome.endswith(" rows") or (len(outcome) == 5 and outcome.isalnum())


def test_the_digest_is_of_what_is_run() -> None:
    """It does not depend on the process, and is a SHA-256."""
    assert digest() == digest()
    assert len(digest()) == 64


async def test_a_ledger_that_is_away_leaves_the_last_findings() -> None:
    """Findings are looked up once a minute; while the ledger does not answer, the last ones stand."""
    now = [0.0]
    answers: list[Verdict | None] = [Verdict("True", "Proven", "one"), None]

    def isolated() -> Verdict:
        answer = answers.pop(0)
        if answer is None:
            raise LedgerUnavailable("away")
        return answer

    hardened = Verdict("True", "Hardened", "all")
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    verdicts = Verdicts(lambda: hardened, isolated, clock=lambda: now[0], now=lambda: noon + timedelta(seconds=now[0]))
    first = await verdicts()
    assert first == Findings(hardened, Verdict("True", "Proven", "one"), noon)
    assert await verdicts() == first
    now[0] = 61.0
    assert await verdicts() == first
    assert answers == []


def test_unknown_is_not_false() -> None:
    """Where nothing could be tried nothing is claimed, and the reason is told."""
    assert unknown("the ledger is away") == Verdict("Unknown", "NotProven", "the ledger is away")
