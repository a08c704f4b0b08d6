"""What is decided about a tenant: the pure core, without a server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowstone.api.parse import validated
from flowstone.api.tenant import TenantStatus
from flowstone.errors import InvalidSpec, LedgerRefused
from flowstone.tenant.changes import Decision, Problem, decide
from flowstone.tenant.credentials import LAG, settings
from flowstone.tenant.desired import GROUP, Desired, parse_tenant
from flowstone.tenant.observed import Login, Observed, OwnDatabase, Registration, Secret, Slot
from flowstone.tenant.own_database import Names, close, found_inside, found_outside, furnish, make_database
from flowstone.tenant.statements import identifier, literal, statements
from flowstone.tenant.status import Findings, Outcome, Verdict, agreed, compose, news
from flowstone.tenant.steps import (
    Configure,
    DeleteSecrets,
    EndSessions,
    Export,
    Issue,
    Join,
    Leave,
    Lock,
    MakeDatabase,
    MakeLogin,
    Purge,
    Record,
    Register,
    Restore,
    RestoreDatabase,
    Strip,
    WriteSecrets,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
A, B, P = "tn_x_a", "tn_x_b", "p"


def resource(**spec: Any) -> dict[str, Any]:
    """Return a Tenant resource."""
    return {
        "metadata": {"name": "acme", "uid": "u1", "generation": 3},
        "spec": {"namespaces": ["one", "two"], **spec},
    }


def desired(**spec: Any) -> Desired:
    """Return what the resource asks for."""
    return parse_tenant(resource(**spec), "c1")


def row(**changes: Any) -> Registration:
    """Return the registry's row of a tenant that works with login a since a day."""
    base = Registration(
        tenant_id="acme",
        tier="basic",
        isolation="Shared",
        state="active",
        max_parallel=None,
        resource_uid="u1",
        role_base="tn_x",
        active_slot="a",
        namespaces=("one", "two"),
        rotated_at=NOW - timedelta(days=1),
        rotate_token="",
        revoked_at=None,
        suspended_at=None,
        retain_until=None,
        export_digest=None,
        purged_at=None,
    )
    return replace(base, **changes)


def login(slot: Slot = "a", **changes: Any) -> Login:
    """Return a login that is as it should be."""
    base = Login(
        role_name=f"tn_x_{slot}",
        slot=slot,
        exists=True,
        mapped=True,
        can_login=True,
        connection_limit=20,
        groups=frozenset({"flowstone_tenant"}),
        members=frozenset({"flowstone_operator"}),
        settings=frozenset(settings(desired(), row())),
    )
    return replace(base, **changes)


def secret(namespace: str, role: str = A, password: str = P, **changes: Any) -> Secret:
    """Return a Secret that is as it should be."""
    return replace(Secret(namespace, "ours", role, password, current=True), **changes)


def observed(**changes: Any) -> Observed:
    """Return a tenant that is as it should be."""
    base = Observed(
        registration=row(),
        now=NOW,
        logins={"a": login()},
        secrets={name: secret(name) for name in ("one", "two")},
        works={(A, "p"): True},
    )
    return replace(base, **changes)


def decided(found: Observed, *, spec_changed: bool = False, **spec: Any) -> Decision:
    """Decide about the tenant."""
    return decide(desired(**spec), found, spec_changed=spec_changed)


def test_nothing_is_done_about_a_tenant_as_it_should_be() -> None:
    """No change, no drift, nothing waits."""
    assert decided(observed()) == Decision()


def test_a_new_tenant_is_registered_before_anything_is_made() -> None:
    """Row first, then the login with its limit and settings, and credentials of which the Secret is written first."""
    empty = {name: Secret(name, "absent") for name in ("one", "two")}
    found = Observed(registration=None, now=NOW, secrets=empty)
    changes = decided(found).changes
    assert changes[0] == Register()
    assert [type(change) for change in changes[1:]] == [MakeLogin, Issue]
    assert changes[1] == MakeLogin(
        "a", 20, ("tcp_keepalives_count=3", "tcp_keepalives_idle=15", "tcp_keepalives_interval=5")
    )
    assert changes[-1] == Issue("a", standby=False)


def test_a_provisioning_that_broke_off_after_the_secret_goes_on_from_it() -> None:
    """The Secret's password is set; none is made anew, so whoever read the Secret is let in."""
    found = observed(
        registration=row(active_slot=None, rotated_at=None),
        logins={"a": login(can_login=False)},
        works={},
        secrets={"one": secret("one"), "two": Secret("two", "absent")},
    )
    assert decided(found).changes == (
        Restore("a", "p"),
        WriteSecrets("a", "p", ("two",)),
        Record({"active_slot": "a", "rotated_at": NOW}),
    )
    assert decided(found).drift == ()


def test_a_rotation_that_broke_off_half_way_is_finished() -> None:
    """One Secret holds the login that stood by, and it works: the other follows, and it becomes the active one."""
    found = observed(
        logins={"a": login("a"), "b": login("b")},
        secrets={"one": secret("one", B, "q"), "two": secret("two")},
        works={(A, "p"): True, (B, "q"): True},
    )
    assert decided(found).changes == (
        WriteSecrets("b", "q", ("two",)),
        Record({"active_slot": "b", "rotated_at": NOW}),
    )
    assert decided(found).drift == ()


def test_a_rotation_that_broke_off_before_the_secrets_starts_over() -> None:
    """The login that stands by has a password that nobody knows: it gets another one."""
    found = observed(registration=row(rotated_at=NOW - timedelta(days=31)), logins={"a": login("a"), "b": login("b")})
    assert decided(found).changes[0] == Issue("b", standby=True)


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"rotated_at": NOW - timedelta(days=30)}, True),
        ({"rotated_at": NOW - timedelta(days=30) + timedelta(seconds=1)}, False),
        ({"rotated_at": None}, True),
        ({"revoked_at": NOW - timedelta(hours=1)}, True),
    ],
)
def test_when_fresh_credentials_are_due(changes: dict[str, Any], due: bool) -> None:
    """After rotateEveryDays, and after a namespace was taken away."""
    found = observed(registration=row(**changes), logins={"a": login("a"), "b": login("b")})
    assert (Issue("b", standby=True) in decided(found).changes) is due


@pytest.mark.parametrize(
    ("standby", "oldest", "may"),
    [
        ({"sessions": 1}, None, False),
        ({}, NOW - timedelta(days=2), False),
        ({}, NOW - timedelta(days=1) + LAG, False),
        ({}, NOW - timedelta(days=1) + LAG + timedelta(seconds=1), True),
        ({"can_login": False, "sessions": 0}, NOW - timedelta(days=2), True),
        ({}, None, True),
    ],
)
def test_a_login_that_may_be_in_use_is_not_rekeyed(standby: dict[str, Any], oldest: datetime | None, may: bool) -> None:
    """Neither with a session, nor while a batch is open that may have started with it."""
    token = {"metadata": {**resource()["metadata"], "annotations": {"flowstone.dev/rotate": "t"}}}
    wanted = parse_tenant({**resource(), **token}, "c1")
    found = observed(logins={"a": login("a"), "b": login("b", **standby)}, oldest_batch=oldest)
    decision = decide(wanted, found, spec_changed=False)
    assert (Issue("b", standby=True) in decision.changes) is may
    assert ("wait" in decision.waits) is not may


def test_a_password_changed_by_hand_is_restored_from_the_secret() -> None:
    """The Secrets agree and are not let in: the login is changed, not the Secrets."""
    found = observed(works={(A, "p"): False})
    assert decided(found).changes == (Restore("a", "p"),)
    assert decided(found).drift == ("a password, or the right to log in, was changed",)


def test_of_two_secrets_the_one_that_works_is_the_truth() -> None:
    """A Secret with a password that is not let in is written again from the one that is."""
    found = observed(
        secrets={"one": secret("one", password="mine"), "two": secret("two")},
        works={(A, "p"): True, (A, "mine"): False},
    )
    assert decided(found).changes == (WriteSecrets("a", "p", ("one",)),)


def test_lost_credentials_go_to_the_free_login_or_in_place() -> None:
    """With the other login free it takes over; when it is in use, the active one gets a new password in place."""
    gone = {name: Secret(name, "absent") for name in ("one", "two")}
    free = observed(secrets=gone, logins={"a": login("a"), "b": login("b")})
    assert decided(free).changes == (Issue("b", standby=True),)
    used = observed(secrets=gone, logins={"a": login("a"), "b": login("b", sessions=2)})
    assert decided(used).changes == (Issue("a", standby=False),)
    assert decided(used).drift == ("the credentials were lost",)


def test_an_edit_of_the_limits_is_no_drift() -> None:
    """The same difference is an edit when the spec is newer, and drift when it is not."""
    for spec_changed, drift in ((True, ()), (False, ("a limit or setting was changed",))):
        decision = decided(observed(), spec_changed=spec_changed, limits={"connections": 3})
        assert [type(change) for change in decision.changes] == [Configure]
        assert decision.drift == drift


def test_a_superuser_attribute_is_drift_even_after_an_edit() -> None:
    """An edit of the spec hides no attribute that nobody asked for."""
    found = observed(logins={"a": login(attributes=frozenset({"SUPERUSER"}))})
    decision = decided(found, spec_changed=True)
    assert decision.changes == (Strip("a", ("SUPERUSER",)),)
    assert decision.drift


@pytest.mark.parametrize(
    ("found", "spec", "reason"),
    [
        (observed(), {"isolation": "Database"}, "IsolationChanged"),
        (observed(registration=row(isolation="Database")), {"isolation": "Shared"}, "IsolationChanged"),
        (
            observed(registration=row(isolation="Database", database_made_at=NOW), database=OwnDatabase(exists=False)),
            {"isolation": "Database"},
            "DatabaseLost",
        ),
        (observed(registration=row(state="purged")), {}, "TenantPurged"),
        (observed(registration=row(resource_uid="u0"), owner_lives=True), {}, "IdTaken"),
        (observed(secrets={"one": Secret("one", "foreign"), "two": secret("two")}), {}, "SecretNameTaken"),
    ],
)
def test_what_needs_people_changes_nothing(found: Observed, spec: dict[str, Any], reason: str) -> None:
    """A problem is named, and nothing is done."""
    decision = decided(found, **spec)
    assert decision.problem is not None
    assert decision.problem.reason == reason
    assert decision.changes == ()


APART_ONLY = frozenset({"flowstone_apart"})


def apart(**changes: Any) -> Observed:
    """Return a tenant with a database of its own that is as it should be."""
    logins: dict[Slot, Login] = {slot: login(slot, groups=APART_ONLY) for slot in ("a", "b")}
    made = row(isolation="Database", database_made_at=NOW)
    return observed(**{"registration": made, "logins": logins, "database": OwnDatabase(exists=True), **changes})


def test_nothing_is_done_about_a_database_as_it_should_be() -> None:
    """Its logins are in a group that has no right in the ledger."""
    assert decided(apart(), isolation="Database") == Decision()


def test_a_database_is_made_before_credentials_lead_there() -> None:
    """Both logins from the beginning, so that each may use what the other makes; then the database; then Secrets."""
    empty = {name: Secret(name, "absent") for name in ("one", "two")}
    found = apart(registration=row(isolation="Database", active_slot=None), logins={}, secrets=empty, database=None)
    changes = decided(found, isolation="Database").changes
    assert [type(change) for change in changes] == [
        MakeLogin,
        MakeLogin,
        MakeDatabase,
        Record,
        Issue,
    ]
    assert changes[2] == MakeDatabase(("a", "b"))
    assert changes[3] == Record({"database_made_at": NOW})


@pytest.mark.parametrize(
    ("found", "repairs", "drifts"),
    [
        (apart(database=OwnDatabase(exists=True, open=("too much: CONNECT TO PUBLIC",))), [RestoreDatabase], 1),
        (apart(logins={"a": login("a", groups=APART_ONLY)}), [MakeLogin, RestoreDatabase], 0),
        (
            apart(
                logins={"a": login("a", groups=APART_ONLY | {"flowstone_tenant"}), "b": login("b", groups=APART_ONLY)}
            ),
            [Leave],
            1,
        ),
    ],
    ids=["open", "login gone", "in the group"],
)
def test_what_is_wrong_about_a_database_is_put_right(found: Observed, repairs: list[type], drifts: int) -> None:
    """Rights of a login that is made anew are no drift; everything else is."""
    decision = decided(found, isolation="Database")
    assert [type(change) for change in decision.changes] == repairs
    assert len(decision.drift) == drifts


def test_a_database_is_shut_until_it_is_said_who_comes_in() -> None:
    """It is made without connections, and opened in the transaction that lets in the two logins and nobody else."""
    names = Names("tn_x", (A, B))
    assert make_database(names) == 'CREATE DATABASE "tn_x" OWNER "tn_x_o" TEMPLATE template0 ALLOW_CONNECTIONS false'
    statements_ = close(names)
    assert statements_[0] == 'SET LOCAL ROLE "tn_x_o"'
    assert [one.split(" TO ")[1] for one in statements_ if one.startswith("GRANT")] == [
        "flowstone_operator",
        '"tn_x_a"',
        '"tn_x_b"',
    ]
    assert "ALLOW_CONNECTIONS true" in statements_[-2]


def test_policies_are_made_anew_only_when_something_is_about_them() -> None:
    """Changing one would wait for every open transaction of a worker."""
    names = Names("tn_x", (A, B))
    plain = furnish(names, ["missing: schema flowstone: USAGE TO tn_x_b"])
    whole = furnish(names, ["missing: policy batch.scope_reads r TO PUBLIC: true: -"])
    assert not any("POLICY" in one for one in plain)
    assert sum(one.startswith("CREATE POLICY") for one in whole) == 6


@pytest.mark.parametrize("query", [found_outside, found_inside])
def test_what_a_database_is_asked_has_no_unquoted_name(query: Any) -> None:
    """A name with a quote in it stays a name."""
    assert "'it''s_a'" in query(Names("tn_x", ("it's_a",))) or "it''s_a" in query(Names("tn_x", ("it's_a",)))
    assert "it's_a" not in query(Names("tn_x", ("it's_a",)))


def deleted(**spec: Any) -> Desired:
    """Return what a resource that is being deleted asks for."""
    body = resource(**spec)
    body["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    return parse_tenant(body, "c1")


def test_revocation_goes_from_the_outside_in() -> None:
    """Registry, membership, sessions, right to log in, sessions that came meanwhile, Secrets, in this order."""
    found = observed(logins={"a": login(sessions=1)})
    assert decide(deleted(), found, spec_changed=False).changes == (
        Record({"state": "suspended", "suspended_at": NOW}),
        Leave("a", "flowstone_tenant"),
        EndSessions("a"),
        Lock("a"),
        EndSessions("a"),
        DeleteSecrets(("one", "two")),
    )


def test_a_confirmed_deletion_takes_its_time() -> None:
    """Suspended, digested, kept for seven days, purged, over."""
    stopped = login(can_login=False, groups=frozenset())
    spec = {"deletionPolicy": "Delete", "confirmDeletion": "acme"}

    def then(**changes: Any) -> Decision:
        registration = row(state="suspended", namespaces=(), **changes)
        found = observed(registration=registration, logins={"a": stopped}, secrets={})
        return decide(deleted(**spec), found, spec_changed=False)

    assert then().changes == (Export(NOW + timedelta(days=7)),)
    kept = then(export_digest="d", retain_until=NOW + timedelta(seconds=1))
    assert (kept.changes, kept.over) == ((), False)
    assert "kept until 2026-11-24T12:00:01Z" in kept.waits
    assert then(export_digest="d", retain_until=NOW).changes == (Purge(),)
    purged = observed(registration=row(state="purged"), logins={})
    assert decide(deleted(**spec), purged, spec_changed=False).over


def test_a_return_joins_the_group_again_with_fresh_credentials() -> None:
    """The row becomes active first; old passwords are not restored."""
    found = observed(
        registration=row(state="suspended", resource_uid="u0", namespaces=()),
        logins={"a": login(can_login=False, groups=frozenset()), "b": login("b", can_login=False, groups=frozenset())},
        secrets={name: Secret(name, "absent") for name in ("one", "two")},
    )
    decision = decided(found)
    assert isinstance(decision.changes[0], Record)
    assert decision.changes[0].values["state"] == "active"
    assert decision.changes[0].values["resource_uid"] == "u1"
    assert decision.changes[1:] == (Join("a", GROUP), Join("b", GROUP), Issue("b", standby=True))
    assert decision.drift == ()


def test_names_and_texts_are_checked_before_they_are_quoted() -> None:
    """What Postgres or psycopg would cut is refused; quotes are doubled."""
    assert identifier('a"b') == '"a""b"'
    assert literal("it's") == "'it''s'"
    for name in ("", "a\0b", "x" * 64, "ä" * 32):
        with pytest.raises(LedgerRefused):
            identifier(name)
    with pytest.raises(LedgerRefused):
        literal("a\\b")


def test_statements_name_the_login_and_the_group() -> None:
    """A few of the steps as SQL."""
    names: dict[Slot, str] = {"a": A, "b": B}
    assert statements(Join("b", GROUP), names, None) == ['GRANT "flowstone_tenant" TO "tn_x_b"']
    assert statements(Lock("a"), names, None) == ['ALTER ROLE "tn_x_a" NOLOGIN PASSWORD NULL']
    assert statements(Configure("a", 5, ("search_path=tn_x, pg_temp",)), names, None) == [
        'ALTER ROLE "tn_x_a" CONNECTION LIMIT 5',
        'ALTER ROLE "tn_x_a" RESET ALL',
        'ALTER ROLE "tn_x_a" SET "search_path" = "tn_x", "pg_temp"',
    ]
    assert statements(Register(), names, None) == []


@pytest.mark.parametrize(
    ("name", "spec", "field"),
    [
        ("x" * 64, {}, "metadata.name"),
        ("acme", {"namespaces": []}, "spec.namespaces"),
        ("acme", {"tier": "gold"}, "spec.tier"),
        ("acme", {"id": "a b"}, "spec.id"),
        ("acme", {"limits": {"connections": 0}}, "spec.limits.connections"),
    ],
)
def test_what_makes_no_tenant_names_its_field(name: str, spec: dict[str, Any], field: str) -> None:
    """The field, the value and the remedy, for what the schema may have let through."""
    body = resource(**spec)
    body["metadata"]["name"] = name
    with pytest.raises(InvalidSpec) as caught:
        parse_tenant(body, "c1")
    assert caught.value.field.startswith(field)


def test_passwords_do_not_show_in_steps() -> None:
    """A step can be logged as it is."""
    for step in (Restore("a", "hush"), WriteSecrets("a", "hush", ("one",)), secret("one", password="hush")):
        assert "hush" not in repr(step)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(Decision()), {"Ready": "True", "CredentialDrift": "False"}),
        (
            Outcome(Decision(changes=(Register(),))),
            {"Ready": "False", "CredentialDrift": "False", "Reconciling": "True"},
        ),
        (
            Outcome(Decision(problem=Problem("IdTaken", "taken"))),
            {"Ready": "False", "CredentialDrift": "Unknown", "Stalled": "True"},
        ),
        (
            Outcome(Decision(), failed="no answer"),
            {"Ready": "False", "CredentialDrift": "Unknown", "Reconciling": "True"},
        ),
        (
            Outcome(Decision(changes=(Leave("a", "x"),)), drift=("given",), stuck=True),
            {"Ready": "False", "CredentialDrift": "True"},
        ),
        (
            Outcome(Decision(), hardened=Verdict("False", "Missing", "m"), isolated=Verdict("True", "Passed", "p")),
            {"Ready": "True", "CredentialDrift": "False", "Hardened": "False", "IsolationVerified": "True"},
        ),
    ],
)
def test_conditions_say_what_is(outcome: Outcome, expected: dict[str, str]) -> None:
    """Types that do not apply are absent; the status fits its schema, and settles: composed again it is the same."""
    status = compose(outcome, 3, {}, NOW)
    assert {one["type"]: one["status"] for one in status["conditions"]} == expected
    assert validated(TenantStatus, status, "status")
    assert compose(outcome, 3, status, NOW + timedelta(hours=1)) == status


def test_drift_that_was_put_right_is_told_of_for_a_while() -> None:
    """Its own write wakes the reconcile at once, which finds nothing; people still see it until `shown` is over."""
    minute = timedelta(seconds=60)
    fine = compose(Outcome(Decision()), 1, {}, NOW)
    drifted = compose(Outcome(Decision(), drift=("a password was changed",)), 1, fine, NOW, shown=minute)
    assert news(fine, drifted) == "a password was changed"
    soon = compose(Outcome(Decision()), 1, drifted, NOW + timedelta(seconds=59), shown=minute)
    assert soon == drifted
    assert news(drifted, soon) == ""
    later = compose(Outcome(Decision()), 1, drifted, NOW + minute, shown=minute)
    assert {one["type"]: one["status"] for one in later["conditions"]}["CredentialDrift"] == "False"


def written(status: dict[str, Any], time: str) -> dict[str, Any]:
    """A Tenant whose status was written by the operator at that time, and whose spec was by somebody later."""
    fields = [{"subresource": "status", "time": time}, {"time": "2030-01-01T00:00:00Z"}]
    return {"metadata": {"managedFields": fields}, "status": status}


def test_the_replica_that_looked_last_is_believed() -> None:
    """Who looked before the status was written leaves what it says; who looked after it overwrites it."""
    broken, sound = Verdict("False", "IsolationBroken", "b"), Verdict("True", "Proven", "p")
    hardened = Verdict("True", "Hardened", "h")
    status = compose(Outcome(Decision(), hardened=hardened, isolated=broken), 1, {}, NOW)
    at = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    before, after = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    assert agreed(Findings(hardened, sound, before), None, written(status, at)).isolated == broken
    assert agreed(Findings(hardened, sound, after), None, written(status, at)).isolated == sound
    assert agreed(Findings(hardened, sound, before), None, {"metadata": {}}).isolated == sound
    assert agreed(Findings(hardened, sound, before), None, written({}, at)).isolated == sound
