"""The proof of isolation: linter, attacks and differential on the real database, by the operator's login.

    isolation = IsolationProof(ledger.database, conninfo, cluster=..., keys=..., log=..., observe=...)
    verdict = isolation()          # about 0.4 s when nothing changed, a second more when the attacks run

The linter runs at each call. The attacks run when the catalogue has changed since the last run (a new table, a policy,
a grant), when the suite has, and once in a while; what they found is kept in `flowstone.proof`, so that all replicas
tell the same. A table whose protection is gone is restored where the owner is ours, and is told of until the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import time

from structlog.stdlib import BoundLogger
from structlog.typing import FilteringBoundLogger

from flowstone.db.attack_runner import Ground, accepted, run, state, undecided
from flowstone.db.canaries import TABLE, Cage, Canaries
from flowstone.db.catalogue_linter import Offence, lint
from flowstone.db.connection import Database, Transaction
from flowstone.db.differential import compare
from flowstone.db.lock_watch import kept_free, naming_lockers
from flowstone.db.mode_proof import ModeProof
from flowstone.errors import LedgerBusy, LedgerError, LedgerRefused
from flowstone.tenant.attack import Result
from flowstone.tenant.hardening import MEASURES
from flowstone.tenant.proof import Finding, Group, Report, Standing, grouped, unknown, verdict
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant.status import Verdict
from flowstone.tenant.suite import ATTACKS, CHECKS, VERSION, digest

EVERY = timedelta(hours=1)
"""Attacks run again after this time although nothing changed."""

STALE = timedelta(hours=3)
"""When they could not be run for so long, nothing is known any more."""

# Roles are left out: the linter looks at them each time, and every new tenant and each proof makes some.
_FINGERPRINT = """
    SELECT md5(string_agg(part, ';' ORDER BY part)) FROM (
        SELECT 'c' || c.oid || ':' || c.xmin FROM pg_class c WHERE c.oid >= 16384
            AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
        UNION ALL SELECT 'p' || p.oid || ':' || p.xmin FROM pg_policy p
        UNION ALL SELECT 'f' || p.oid || ':' || p.xmin FROM pg_proc p WHERE p.oid >= 16384
            AND p.pronamespace IN (SELECT n.oid FROM pg_namespace n WHERE n.nspname !~ '^pg_temp')
        UNION ALL SELECT 'a' || a.attrelid || '.' || a.attnum || ':' || a.xmin FROM pg_attribute a
            WHERE a.attacl IS NOT NULL
        UNION ALL SELECT 'n' || n.oid || ':' || n.xmin FROM pg_namespace n WHERE n.nspname !~ '^pg_(temp|toast)'
        UNION ALL SELECT 'k' || k.oid || ':' || k.xmin FROM pg_constraint k WHERE k.oid >= 16384
        UNION ALL SELECT 'i' || i.indexrelid FROM pg_index i WHERE i.indexrelid >= 16384
        UNION ALL SELECT 't' || t.oid || ':' || t.xmin FROM pg_trigger t WHERE NOT t.tgisinternal
        UNION ALL SELECT 'v' || current_setting('server_version_num')
        UNION ALL SELECT DISTINCT 'm' || t.isolation FROM flowstone.tenant t
            WHERE t.state = 'active' AND NOT t.tenant_id ^@ 'flowstone-canary-'
    ) AS parts (part)
"""

_LAST = """
    SELECT version, digest, fingerprint, proven_at, checks, open, admitted, skipped FROM flowstone.proof
    WHERE cluster = %(cluster)s
"""

_KEEP = """
    INSERT INTO flowstone.proof (cluster, version, digest, fingerprint, proven_at, checks, open, admitted, skipped)
    VALUES (%(cluster)s, %(version)s, %(digest)s, %(fingerprint)s, %(at)s, %(checks)s, %(open)s, %(admitted)s,
        %(skipped)s)
    ON CONFLICT (cluster) DO UPDATE SET version = excluded.version, digest = excluded.digest,
        fingerprint = excluded.fingerprint, proven_at = excluded.proven_at, checks = excluded.checks,
        open = excluded.open, admitted = excluded.admitted, skipped = excluded.skipped
"""


def verify(
    database: Database,
    conninfo: str,
    *,
    cluster: str,
    keys: ContextKeys | None = None,
    clock: Callable[[], float] = time,
) -> Report:
    """Run linter, attacks and differential once.

    Args:
        database: The ledger's, as in `ledger.database`.
        conninfo: Where the operator reaches Postgres; the canaries log in there.
        cluster: The cluster's id.
        keys: What contexts are signed with; without them the attacks with a true signature are skipped.
        clock: Unix seconds.

    Raises:
        LedgerBusy: Another proof runs, or a session locks a table with tenants' rows; says which.
        LedgerUnavailable: Postgres does not answer.
    """
    with _looking(database) as tx:
        offences = lint(tx)
    try:
        canaries, modes = Canaries(database, cluster, conninfo), ModeProof(database, cluster, conninfo)
        attacked = _attack(database, canaries, modes, keys, clock)
    except LedgerRefused as error:  # the canaries cannot do what tenants do
        failed = Finding(
            "attack", "none could be run", str(error), "see what the linter found; run `flowstone migrate`"
        )
        attacked = Report(VERSION, digest(), datetime.fromtimestamp(clock(), UTC), 0, (failed,))
    return Report(
        attacked.version,
        attacked.digest,
        attacked.at,
        attacked.checks + len(CHECKS),
        (*map(finding, offences), *attacked.open),
        attacked.admitted,
        attacked.skipped,
        (Group("catalogue", len(CHECKS), len(offences)), *attacked.groups),
    )


@contextmanager
def _looking(database: Database) -> Iterator[Transaction]:
    """Yield a transaction for the linter: Postgres locks a table to print its policies."""
    with naming_lockers(database), kept_free(database, TABLE), database.transaction() as tx:
        yield tx


def finding(offence: Offence) -> Finding:
    """Return what a check of the linter found."""
    some = ", ".join(offence.what[:5]) + (f" and {len(offence.what) - 5} more" if len(offence.what) > 5 else "")
    return Finding("lint", offence.check.name, some, offence.check.remedy)


def _attack(
    database: Database, canaries: Canaries, modes: ModeProof, keys: ContextKeys | None, clock: Callable[[], float]
) -> Report:
    with database.transaction() as tx:
        left_open = frozenset(measure.name for measure in MEASURES if tx.rows(measure.open))
    with canaries.out() as cage:
        before = _states(cage)
        usable = keys if keys is not None and accepted(cage, keys) else None
        results = list(run(cage, ATTACKS, Ground(usable, left_open)))
        results += modes.results(left_open)
        if cage.lockers and undecided(results):
            raise LedgerBusy("; ".join(sorted({str(one) for one in cage.lockers})))
        compared, differences = compare(database, cage)
        changed = () if _states(cage) == before else (_changed(),)
    return Report(
        VERSION,
        digest(),
        datetime.fromtimestamp(clock(), UTC),
        sum(1 for one in results if one.state != "skipped") + compared,
        (*(_broken(one) for one in results if one.state == "open"), *differences, *changed),
        tuple(one.attack.id for one in results if one.state == "admitted"),
        tuple(one.attack.id for one in results if one.state == "skipped"),
        (*grouped(results), Group("rows against the predicate", compared, len(differences) + len(changed))),
    )


def _states(cage: Cage) -> tuple[str, str]:
    return state(cage.attacker), state(cage.victim)


def _broken(result: Result) -> Finding:
    return Finding("attack", result.attack.id, f"{result.outcome}, not {' or '.join(result.attack.expected)}")


def _changed() -> Finding:
    return Finding("difference", "an attack left something behind", "the canaries' rows are not what they were")


@dataclass(frozen=True, slots=True)
class _Last:
    """What `flowstone.proof` holds."""

    version: int
    digest: str
    fingerprint: str
    at: datetime
    checks: int
    open: Sequence[str]
    admitted: Sequence[str]
    skipped: Sequence[str]


class IsolationProof:
    """Condition `IsolationVerified`, proven again when something changed or time has passed.

    Args:
        database: The ledger's, as in `ledger.database`.
        conninfo: Where the operator reaches Postgres; the canaries log in there.
        cluster: The cluster's id.
        keys: What contexts are signed with, where this process has them.
        restore: Restore the protection of the owner's tables when it is gone.
        observe: Told (verified, checks that failed, Unix time of the last attacks) after each look.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        conninfo: str,
        *,
        cluster: str,
        log: FilteringBoundLogger | BoundLogger,
        keys: ContextKeys | None = None,
        restore: bool = True,
        observe: Callable[[bool, int, float], None] = lambda verified, failed, at: None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._database = database
        self._canaries = Canaries(database, cluster, conninfo)
        self._modes = ModeProof(database, cluster, conninfo)
        self._cluster = cluster
        self._keys = keys
        self._log = log
        self._restore = restore
        self._observe = observe
        self._clock = clock

    def __call__(self) -> Verdict:
        """Look, attack if that is due, restore what can be, and say what holds.

        Raises:
            LedgerUnavailable: Postgres does not answer, so nothing is known.
            LedgerBusy: A session locks a table with tenants' rows, so nothing new is known; says which.
        """
        with _looking(self._database) as tx:
            offences, fingerprint, last = lint(tx), self._fingerprint(tx), self._last(tx)
        problem = ""
        if last is None or self._due(last, fingerprint):
            try:
                last = self._prove(fingerprint)
            except LedgerError as error:
                problem = str(error)
                self._log.warning("isolation-not-proven", error=problem)
        if not offences and (last is None or (problem and self._age(last) >= STALE)):
            return unknown(f"the attacks could not be run: {problem}")
        return self._tell(last or self._never(), offences, self._restored(offences))

    def _never(self) -> _Last:
        return _Last(VERSION, digest(), "", datetime.fromtimestamp(self._clock(), UTC), 0, [], [], [])

    def _fingerprint(self, tx: Transaction) -> str:
        row = tx.row(_FINGERPRINT)
        signed = "+key" if self._keys is not None else ""  # who got a key tries at once what needs one
        return f"{row[0]}{signed}" if row else ""

    def _last(self, tx: Transaction) -> _Last | None:
        row = tx.row(_LAST, {"cluster": self._cluster})
        return _Last(*row) if row else None

    def _due(self, last: _Last, fingerprint: str) -> bool:
        changed = last.fingerprint != fingerprint or last.digest != digest()
        return changed or bool(last.open) or self._age(last) >= EVERY

    def _age(self, last: _Last) -> timedelta:
        return datetime.fromtimestamp(self._clock(), UTC) - last.at

    def _prove(self, fingerprint: str) -> _Last:
        report = _attack(self._database, self._canaries, self._modes, self._keys, self._clock)
        last = _Last(
            report.version,
            report.digest,
            fingerprint,
            report.at,
            report.checks,
            [str(one) for one in report.open],
            list(report.admitted),
            list(report.skipped),
        )
        values = {name: getattr(last, name) for name in _Last.__slots__}
        with self._database.transaction() as tx:
            tx.run(_KEEP, {"cluster": self._cluster, **values})
        self._log.info("isolation-proven", checks=last.checks, failed=len(last.open), suite=last.digest[:12])
        return last

    def _restored(self, offences: Sequence[Offence]) -> list[str]:
        """Put the protection of tables back; what is not the owner's stays as it is, and is told of."""
        tables = sorted({oid for offence in offences for oid in offence.tables}) if self._restore else []
        done = []
        for oid in tables:
            try:
                with self._database.transaction() as tx:
                    row = tx.row(
                        "SELECT %(oid)s::oid::regclass::text, flowstone.restore_protection(%(oid)s::oid::regclass)",
                        {"oid": oid},
                    )
            except LedgerError as error:
                self._log.warning("protection-not-restored", table=oid, error=str(error))
            else:
                done.append(str(row[0]) if row else str(oid))
                self._log.warning("protection-restored", table=done[-1])
        return done

    def _tell(self, last: _Last, offences: Sequence[Offence], restored: Sequence[str]) -> Verdict:
        standing = Standing(
            version=last.version,
            digest=last.digest,
            at=last.at,
            checks=last.checks + len(CHECKS),
            attacks=sum(attack.id not in last.skipped for attack in ATTACKS) if last.checks else 0,
            attacked=last.open,
            linted=[finding(one) for one in offences],
            admitted=last.admitted,
            skipped=last.skipped,
            restored=restored,
        )
        failed = len(offences) + len(last.open)
        self._observe(not failed, failed, last.at.timestamp())
        return verdict(standing)
