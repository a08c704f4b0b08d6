"""Attacks from a pooled login, which acts for whom its signed context names. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from flowstone.tenant.attack import FUNCTIONS, NOTHING, REFUSED, Attack

_FOREIGN = "SELECT FROM flowstone.canary WHERE tenant_id = {victim}"
_ANY = "SELECT FROM flowstone.canary"
_OWN = "SELECT set_config('flowstone.context', {signed}, true)"


def _pool(prefix: str, attacks: Mapping[str, tuple[str, ...]], *expected: str, keyed: bool = False) -> list[Attack]:
    return [
        Attack(f"{prefix}/{name}", statements, expected, principal="pool", keyed=keyed)
        for name, statements in attacks.items()
    ]


def _context(text: str) -> str:
    return f"SELECT set_config('flowstone.context', {text}, true)"


POOL: tuple[Attack, ...] = (
    *_pool(
        "pool",
        {
            "no context": (_ANY,),
            "empty context": (_context("''"), _ANY),
            "forged": (_context("{forged}"), _ANY),
            "forged for the session": ("SET flowstone.context = {forged}", _ANY),
            "no signature": (_context("{victim_scope} || '.9999999999.'"), _ANY),
            "short": (_context("'x'"), _ANY),
            "long": (_context("repeat('x', 100000)"), _ANY),
            "no number": (_context("{victim_scope} || '.soonsoonso.' || repeat('0', 64)"), _ANY),
            "quotes": (_context("repeat(chr(39), 100)"), _ANY),
            "other alphabet": (_context("repeat(chr(246), 100)"), _ANY),
            "tenant's setting": ("SET app.tenant_id = {victim}", _FOREIGN),
            "entered": ("SELECT flowstone.enter_tenant({forged})", _ANY),
            "partitions": (_context("{forged}"), "SELECT FROM flowstone.materialization"),
            "successes": (_context("{forged}"), "SELECT FROM flowstone.latest"),
            "copy": (_context("{forged}"), "COPY flowstone.canary TO STDOUT"),
            "its group": ("SET ROLE flowstone_pool", _ANY),
            "held cursor": ("DECLARE c CURSOR WITH HOLD FOR " + _ANY, "COMMIT", "FETCH ALL FROM c"),
        },
        NOTHING,
    ),
    *_pool(
        "pool",
        {
            "insert": ("INSERT INTO flowstone.canary (tenant_id, id, note) VALUES ({victim}, 9, 'x')",),
            "report": (
                "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence) "
                "VALUES ({victim_scope}, 'a', 'p', '00000000-0000-0000-0000-000000000000', 0, 'succeeded', 0)",
            ),
            "update partitions": ("UPDATE flowstone.materialization SET state = 'failed'",),
            "batches": ("SELECT FROM flowstone.batch",),
            "logins": ("SELECT role_name FROM flowstone.login_scope",),
            "registry": ("SELECT FROM flowstone.tenant",),
            "keys": ("SELECT FROM flowstone.context_key",),
            "truncate": ("TRUNCATE flowstone.canary",),
            "operator": ("SET ROLE flowstone_operator",),
            "owner": ("SET ROLE flowstone_owner",),
            "tenants": ("SET ROLE flowstone_tenant",),
            "victim": ("SET ROLE {victim_name}",),
            "session": ("SET SESSION AUTHORIZATION {victim_name}",),
            "row security off": ("SET row_security = off", _ANY),
            "function": (
                "CREATE OR REPLACE FUNCTION flowstone.context_tenant() RETURNS text LANGUAGE sql AS 'SELECT ''x'''",
            ),
            "no tenant": ("INSERT INTO flowstone.canary (id, note) VALUES (10, 'x')",),
        },
        REFUSED,
    ),
    *_pool(
        "pool",
        {
            "shadowed digest": (
                "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT ''''::bytea'",
                "SET search_path = pg_temp, pg_catalog",
                _context("{forged}"),
                _ANY,
            ),
        },
        NOTHING,
        REFUSED,
    ),
    *(
        Attack(f"pool/{name}", (statement,), (REFUSED,), principal="pool", hardening=FUNCTIONS)
        for name, statement in (
            ("words of others", "SELECT query FROM pg_stat_activity WHERE usename = CURRENT_USER"),
            ("words by session", "SELECT pg_stat_get_backend_activity(1)"),
            ("end a session", "SELECT pg_terminate_backend(0)"),
            ("cancel a statement", "SELECT pg_cancel_backend(0)"),
            ("lock", "SELECT pg_advisory_lock(724639150)"),
        )
    ),
    *_pool("pool/control", {"reads its own": (_OWN, _ANY)}, "2 rows", keyed=True),
    *_pool(
        "signed",
        {
            "foreign row": (_OWN, _FOREIGN),
            "foreign update": (_OWN, "UPDATE flowstone.canary SET note = 'x' WHERE tenant_id = {victim}"),
            "foreign delete": (_OWN, "DELETE FROM flowstone.canary WHERE tenant_id = {victim}"),
            "other tenant": (_OWN, _context("replace({signed}, {own}, {victim})"), _FOREIGN),
            "longer": (_context("{stretched}"), _ANY),
            "expired": (_context("{expired}"), _ANY),
            "other key": (_context("{foreign_key}"), _ANY),
            "upper case": (_context("left({signed}, -64) || upper(right({signed}, 64))"), _ANY),
            "reset": (_OWN, "RESET flowstone.context", _ANY),
            "after its transaction": (_OWN, "COMMIT", _ANY),
            "after a savepoint": ("SAVEPOINT s", _OWN, "ROLLBACK TO s", _ANY),
            "cursor after it": (_OWN, "DECLARE c CURSOR FOR " + _FOREIGN, "FETCH ALL FROM c"),
            "partitions": (_OWN, "SELECT FROM flowstone.materialization WHERE scope <> {own_scope}"),
        },
        NOTHING,
        keyed=True,
    ),
    *_pool(
        "signed",
        {
            "foreign insert": (
                _OWN,
                "INSERT INTO flowstone.canary (tenant_id, id, note) VALUES ({victim}, 11, 'x')",
            ),
            "give away": (_OWN, "UPDATE flowstone.canary SET tenant_id = {victim}"),
            "report for another": (
                _OWN,
                "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence) "
                "VALUES ({victim_scope}, 'a', 'p', '00000000-0000-0000-0000-000000000000', 0, 'succeeded', 0)",
            ),
            "report for a backfill": (
                _OWN,
                "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal, state, fence) "
                "VALUES ({own_scope}, 'a', 'p', '10000000-0000-4000-8000-000000000000', 0, 'succeeded', 1)",
            ),
        },
        REFUSED,
        keyed=True,
    ),
)
