"""The proof of isolation on real servers: green where nothing is open, and what it says, restores and leaves behind."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
import structlog
from prometheus_client import generate_latest

from flowstone.cli.app import main
from flowstone.db.attack_runner import Ground, run, undecided
from flowstone.db.bootstrap import bootstrap
from flowstone.db.ledger import Ledger
from flowstone.db.logins import Logins
from flowstone.db.passwords import scram_verifier
from flowstone.db.proof import verify
from flowstone.db.tenants import TenantRegistry
from flowstone.errors import InvalidSpec, LedgerBusy, LedgerRefused
from flowstone.telemetry import Metrics
from flowstone.tenant.attack import Result
from flowstone.tenant.desired import parse_tenant
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant.status import Verdict
from flowstone.tenant.suite import ATTACKS, CHECKS, digest
from flowstone.tenant.verdicts import Verdicts
from tests.postgres.conftest import WORKER_PASSWORD, copied
from tests.postgres.servers import Server
from tests.postgres.tenant.proving import CLUSTER, Proving, any_server, field

__all__ = ["any_server", "field"]

pytestmark = pytest.mark.postgres


class Clock:
    """Unix seconds that the test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def test_a_sound_database_is_proven(field: Proving) -> None:
    """Nothing is open, nothing is left to Hardened, all attacks are tried, and every kind of check took part."""
    report = field.verify()
    assert (report.open, report.admitted, report.skipped) == ((), (), ())
    tables_twice_and_sums = 2 * 3 + 2 * 2 + 3  # canary, booking, stay; materialization, batch; sums of the first three
    inserts = 2 * 2  # canary and booking; a partitioned table routes rows before it asks
    assert report.checks == len(ATTACKS) + len(CHECKS) + tables_twice_and_sums + inserts
    assert report.digest == digest()


def test_nothing_is_left_behind(field: Proving) -> None:
    """Afterwards no canary has a row, none can log in, the pooled one is gone, and the lease is free."""
    field.verify()
    field.verify()  # a second time finds what the first one left
    counts = " UNION ALL ".join(
        f"SELECT count(*) FROM flowstone.{table}" for table in ("canary", "batch", "materialization", "latest")
    )
    assert field.place.all(counts) == [(0,)] * 4
    query = "SELECT s.role_name, r.rolcanlogin FROM flowstone.login_scope s JOIN pg_roles r ON r.rolname = s.role_name"
    assert [able for _, able in field.place.all(query)] == [False, False]
    assert field.place.all("SELECT count(*) FROM pg_roles WHERE rolname ~ '^tn_.*_p$'") == [(0,)]
    assert field.place.all("SELECT DISTINCT lease_owner FROM flowstone.tenant") == [(None,)]


def test_a_right_for_a_canary_does_not_stop_the_proof(field: Proving) -> None:
    """Somebody grants the pooled canary a right while a proof runs: it cannot be dropped, and serves the next ones."""
    field.admin("CREATE ROLE somebody", "CREATE SCHEMA AUTHORIZATION somebody")
    try:
        with field.canaries.out() as cage:
            name = psycopg.conninfo.conninfo_to_dict(cage.pool or "")["user"]
            field.admin(f"SET ROLE somebody; CREATE TABLE somebody.given (x int); GRANT SELECT (x) ON given TO {name}")
        able = "SELECT rolcanlogin, pg_has_role(oid, 'flowstone_pool', 'MEMBER') FROM pg_roles"
        shut = f"{able} WHERE rolname = '{name}'"
        assert field.place.all(shut) == [(False, False)]
        assert field.verify().open == ()
        assert field.place.all(shut) == [(False, False)]
    finally:
        field.admin("DROP SCHEMA somebody CASCADE", "DROP ROLE somebody")
    assert field.verify().open == ()
    assert field.place.all(shut) == []


def test_no_secret_is_logged(any_server: Server, field: Proving) -> None:
    """Neither verifier nor password of a canary stands in the server's log, which has every statement."""
    with field.canaries.out() as cage:
        passwords = [
            psycopg.conninfo.conninfo_to_dict(one)["password"]
            for one in (cage.attacker.conninfo, cage.victim.conninfo, cage.pool or "")
        ]
        verifiers = field.place.all(
            "SELECT rolpassword FROM pg_authid WHERE rolname = ANY(%s)",
            [cage.attacker.role_name, cage.victim.role_name],
        )
    log = any_server.log()
    assert len(passwords) == 3
    assert len(verifiers) == 2
    assert [secret for secret in (*passwords, *(v for (v,) in verifiers)) if str(secret) in log] == []


def test_before_bootstrap_what_is_open_is_hardeneds(any_server: Server) -> None:
    """Where PUBLIC may make temporary tables, take locks and see sessions, such attacks get there and are admitted."""
    for place in copied(any_server):
        with place.connect() as admin:
            admin.execute(f"GRANT CONNECT ON DATABASE {place.name} TO flowstone_operator".encode())
            for name in ("advisory_lock(bigint)", "terminate_backend(int, bigint)", "stat_get_activity(int)"):
                admin.execute(f"GRANT EXECUTE ON FUNCTION pg_{name} TO PUBLIC".encode())
        try:
            with Ledger.connect(place.operator, cluster=CLUSTER) as ledger:
                report = verify(ledger.database, place.operator, cluster=CLUSTER)
            assert report.open == ()
            assert set(report.admitted) == {
                "object/temporary table",
                "object/temporary function",
                "reach/lock",
                "pool/lock",
                "pool/end a session",
                "pool/words of others",
            }
        finally:
            bootstrap(place.admin, keys=None, log=structlog.get_logger())


def test_without_the_key_signed_attacks_are_named_as_not_tried(field: Proving) -> None:
    """What could not be tried is not passed over in silence."""
    report = field.verify(keys=None)
    assert report.open == ()
    assert set(report.skipped) == {attack.id for attack in ATTACKS if attack.keyed}
    message = field.proof(keys=None)().message
    assert f"{len(ATTACKS) - len(report.skipped)} attacks; {len(report.skipped)} not tried for want of" in message

    assert field.proof()().message.endswith(f"checks with {len(ATTACKS)} attacks")  # who has the key tries them at once


def test_a_key_that_the_database_does_not_know_proves_nothing(field: Proving) -> None:
    """Signed attacks with a foreign key would all be refused, whatever is open: they count as not tried."""
    found = field.proof(keys=ContextKeys.generate(CLUSTER))()
    assert found.truth == "True"
    assert f"{sum(attack.keyed for attack in ATTACKS)} not tried" in found.message


def test_one_proof_at_a_time(field: Proving) -> None:
    """While one runs another says so; it does not change the first one's passwords."""
    with field.canaries.out() as cage:
        with pytest.raises(LedgerBusy, match="another proof"):
            field.verify()
        psycopg.connect(cage.attacker.conninfo).close()


def test_the_command_with_a_wrong_login(field: Proving, capsys: pytest.CaptureFixture[str]) -> None:
    """A pooled login is told whom to connect as, and not that the schema is old."""
    field.admin(f"CREATE ROLE wrong LOGIN PASSWORD '{WORKER_PASSWORD}' IN ROLE flowstone_pool")
    try:
        assert main(["tenant", "verify", "--database-url", field.place.login("wrong")]) == 3
        assert "login wrong may not read the ledger: connect as flowstone_operator" in capsys.readouterr().err
    finally:
        field.admin("DROP ROLE wrong")


async def test_a_tenant_that_locks_a_table_neither_stops_nor_spoils_a_proof(field: Proving) -> None:
    """Who locks the canaries' table is ended. Who locks another is named, and what was proven before stands."""
    database = field.ledger.database
    scope = TenantRegistry(database, CLUSTER).register("acme").scope
    name = Logins(database).ensure(scope, "tn", "acme").role_name
    Logins(database).set_password(name, scram_verifier(WORKER_PASSWORD))
    clock = Clock()
    verdicts = Verdicts(lambda: Verdict("True", "Hardened", ""), field.proof(), clock=clock)
    proven = (await verdicts()).isolated
    assert proven is not None
    assert proven.truth == "True"
    with psycopg.connect(field.place.login(name)) as tenant:
        tenant.execute("LOCK TABLE flowstone.canary IN ACCESS EXCLUSIVE MODE")
        assert field.verify().open == ()
        with pytest.raises(psycopg.OperationalError):
            tenant.execute("SELECT 1")
    with psycopg.connect(field.place.login(name)) as tenant:
        tenant.execute("LOCK TABLE public.booking IN ACCESS EXCLUSIVE MODE")
        pid = tenant.info.backend_pid
        words = f"public.booking is locked by session {pid} of login {name}: end it with .*terminate_backend.{pid}"
        with pytest.raises(LedgerBusy, match=words):
            field.verify()
        clock.now += 600
        assert (await verdicts()).isolated == proven
        assert tenant.execute("SELECT 1").fetchone() == (1,)


def test_a_lock_is_no_answer() -> None:
    """Attacks that were cut off waiting for a lock decide nothing; with another one that is open, they do."""
    attack = ATTACKS[0]
    held, locked, works = Result(attack, "", "held"), Result(attack, "55P03", "open"), Result(attack, "2 rows", "open")
    assert undecided([held, locked])
    assert not undecided([held])
    assert not undecided([locked, works])


def test_the_verdict_is_kept_until_something_changes(field: Proving) -> None:
    """The attacks run at first, after a change of the catalogue, and after an hour; all replicas tell the same."""
    clock = Clock()
    one, other = field.proof(clock=clock), field.proof(clock=clock)
    first = one()
    assert (first.truth, first.reason) == ("True", "Proven")
    assert f"sha256:{digest()[:12]}" in first.message
    assert "2026-11-24T12:00:00Z" in first.message
    clock.now += 600
    assert other() == one() == first
    field.admin("CREATE TABLE public.plain (x int)")
    assert "12:10:00Z" in one().message
    clock.now += 3600
    assert "13:10:00Z" in other().message


def shut(field: Proving) -> Verdict:
    """Return what the next look says."""
    return field.proof()()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("ALTER TABLE public.booking DISABLE ROW LEVEL SECURITY", "row security is off: public.booking"),
        ("ALTER TABLE flowstone.batch NO FORCE ROW LEVEL SECURITY", "row security is not forced: flowstone.batch"),
        ("DROP POLICY tenant_floor ON public.booking", "missing or was changed: public.booking: tenant_floor"),
        ("CREATE POLICY careless ON public.booking USING (true)", "not ours: public.booking: careless"),
        ("ALTER POLICY scope_reads ON flowstone.batch USING (true)", "changed: flowstone.batch: scope_reads"),
        ("GRANT TRUNCATE ON public.booking TO flowstone_tenant", "public.booking: TRUNCATE TO flowstone_tenant"),
        ("GRANT UPDATE ON public.booking TO flowstone_pool", "public.booking: UPDATE TO flowstone_pool"),
        ("GRANT SELECT ON public.booking TO PUBLIC", "public.booking: SELECT TO PUBLIC"),
        ("GRANT DELETE ON flowstone.batch TO flowstone_tenant", "too much: batch: DELETE TO flowstone_tenant"),
        ("REVOKE UPDATE ON flowstone.batch FROM flowstone_tenant", "not there: batch: UPDATE (reporting)"),
        ("GRANT SELECT ON flowstone.context_key TO PUBLIC", "too much: context_key: SELECT TO PUBLIC"),
    ],
)
def test_what_is_changed_by_hand_is_shown_and_restored(field: Proving, statement: str, words: str) -> None:
    """The next look is False and names it, the one after that is True: it was put back as it was."""
    state = """
        SELECT c.oid::regclass::text, c.relrowsecurity, c.relforcerowsecurity,
               ARRAY(SELECT x::text FROM aclexplode(c.relacl) x ORDER BY 1),
               ARRAY(SELECT (a.attname, x)::text FROM pg_attribute a, aclexplode(a.attacl) x
                     WHERE a.attrelid = c.oid ORDER BY 1),
               ARRAY(SELECT (p.polname, p.polcmd, p.polpermissive, p.polroles, pg_get_expr(p.polqual, p.polrelid),
                             pg_get_expr(p.polwithcheck, p.polrelid))::text
                     FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1)
        FROM pg_class c WHERE c.relname IN ('booking', 'batch') AND c.relkind = 'r' ORDER BY 1
    """
    before = field.place.all(state)
    assert shut(field).truth == "True"
    field.admin(statement)
    found = shut(field)
    assert (found.truth, found.reason) == ("False", "IsolationBroken")
    assert words in found.message
    assert "restored just now" in found.message
    assert shut(field).truth == "True"
    assert field.place.all(state) == before


def test_what_is_not_the_owners_stays_open_and_named(field: Proving) -> None:
    """A table that somebody else owns cannot be restored: the verdict stays False until somebody closes it."""
    field.admin("ALTER TABLE public.booking OWNER TO postgres", "ALTER TABLE public.booking DISABLE ROW LEVEL SECURITY")
    for _ in range(2):
        found = shut(field)
        assert found.truth == "False"
        assert "row security is off: public.booking" in found.message
        assert "restored" not in found.message
    field.admin("ALTER TABLE public.booking ENABLE ROW LEVEL SECURITY")
    assert shut(field).truth == "True"


def test_the_gauges(field: Proving) -> None:
    """Verified is 1 or 0, and the number of failed checks is the number that the message names."""
    metrics = Metrics()
    proof = field.proof(observe=metrics.isolation, restore=False)
    proof()
    shown = generate_latest(metrics.registry).decode()
    assert "flowstone_isolation_verified 1.0\n" in shown
    assert "flowstone_isolation_checks_failed 0.0\n" in shown
    field.admin("ALTER TABLE public.booking NO FORCE ROW LEVEL SECURITY")
    assert proof().truth == "False"
    shown = generate_latest(metrics.registry).decode()
    assert "flowstone_isolation_verified 0.0\n" in shown
    assert "flowstone_isolation_checks_failed 1.0\n" in shown


def test_where_the_attacks_cannot_run_nothing_is_claimed(field: Proving) -> None:
    """A login that cannot do what the proof needs gets Unknown, and `verify` counts that as open."""
    field.admin("ALTER ROLE flowstone_operator NOCREATEROLE")
    try:
        found = shut(field)
        assert (found.truth, found.reason) == ("Unknown", "NotProven")
        [finding] = field.verify().open
        assert finding.name == "none could be run"
    finally:
        field.admin("ALTER ROLE flowstone_operator CREATEROLE")


def test_the_operator_restores_the_owners_tables_only(field: Proving) -> None:
    """The function that has the owner's rights touches nothing that is not the owner's."""
    field.admin("CREATE TABLE public.mine (x int)")
    restore = "SELECT flowstone.restore_protection('public.mine'::regclass)"
    with (
        pytest.raises(LedgerRefused, match="not a table of flowstone_owner"),
        field.ledger.database.transaction() as tx,
    ):
        tx.run(restore)


def test_namespaces_may_have_tables_of_their_own(field: Proving) -> None:
    """What is granted to namespaces' logins, and tables that tenants only read, are nobody's rows and no offence."""
    field.admin(
        "CREATE TABLE public.shared (x int, tenant_id text)",
        "GRANT SELECT, INSERT, UPDATE ON public.shared TO flowstone_namespace",
        "CREATE SEQUENCE public.numbers",
        "GRANT USAGE ON SEQUENCE public.numbers TO flowstone_namespace",
        "CREATE TABLE public.country (code text PRIMARY KEY)",
        "GRANT SELECT ON public.country TO flowstone_tenant, flowstone_pool",
        "CREATE VIEW public.notes WITH (security_invoker = true) AS SELECT note FROM public.booking",
        "GRANT SELECT ON public.notes TO flowstone_tenant",
        "CREATE POLICY narrower ON public.booking AS RESTRICTIVE USING (note <> 'secret')",
        "CREATE ROLE analyst",
        "CREATE POLICY analysts ON public.booking FOR SELECT TO analyst USING (true)",
    )
    try:
        assert [str(one) for one in field.verify().open] == []
    finally:
        field.admin("DROP POLICY analysts ON public.booking", "DROP ROLE analyst")


def test_a_canary_is_nobodys_tenant() -> None:
    """No Tenant gets the id of a canary."""
    resource = {
        "metadata": {"name": "flowstone-canary-1234abcd-a", "uid": "u", "generation": 1},
        "spec": {"namespaces": ["one"]},
    }
    with pytest.raises(InvalidSpec, match="reserved"):
        parse_tenant(resource, CLUSTER)


def test_an_attack_that_works_is_open_and_leaves_nothing(field: Proving) -> None:
    """A tenant that may take any foreign row is seen doing so, and the row is still the victim's afterwards."""
    field.admin("ALTER TABLE flowstone.canary DISABLE ROW LEVEL SECURITY")
    with field.canaries.out() as cage:
        chosen = [one for one in ATTACKS if one.id in ("write/delete", "write/update", "read/copy out")]
        ground = Ground(keys=None, left_open=frozenset())
        results = [(one.attack.id, one.state, one.outcome) for one in run(cage, chosen, ground)]
        rows = field.place.all("SELECT note FROM flowstone.canary WHERE tenant_id = %s", cage.victim.tenant_id)
    assert sorted(results) == [
        ("read/copy out", "open", "2 rows"),
        ("write/delete", "open", "2 rows"),
        ("write/update", "open", "23505"),  # the unique key, and no policy, stood in the way
    ]
    assert ("victim's secret",) in rows


def test_the_command(field: Proving, capsys: pytest.CaptureFixture[str]) -> None:
    """`flowstone tenant verify` prints a table and ends with 0; with something open it names it and ends with 1."""
    assert main(["tenant", "verify", "--database-url", field.place.operator]) == 0
    shown = capsys.readouterr().out
    assert "proven: " in shown
    assert digest() in shown.replace("\n", "")
    field.admin("ALTER TABLE public.booking DISABLE ROW LEVEL SECURITY")
    assert main(["tenant", "verify", "--database-url", field.place.operator]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "row security is off: public.booking" in shown
    assert "ENABLE ROW LEVEL SECURITY" in shown
