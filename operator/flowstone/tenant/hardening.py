# ruff: noqa: S608 - all SQL of this module is put together from its own constants
"""What the server as a whole must be like for tenants to share it: how it is made so, and how that is read back. Pure.

`flowstone bootstrap` runs the statements once, as a superuser; a managed service's administrator runs the printed ones.
Some of them succeed without any effect for whoever may not run them, so nothing is believed that the catalogue does not
show: each measure comes with a query that names what is still open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowstone.tenant.status import Verdict

OLDEST_SAFE = {15: 150014, 16: 160010, 17: 170006, 18: 180000}
"""Minor versions below these have known holes in row level security; by major version, as server_version_num."""

TEMP_FILES = "10GB"
"""Temporary files that one session may fill; only a superuser may set it, and it protects the disk of all."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to be done to the server.

    Attributes:
        name: What is open without it, in a few words, as `Hardened` lists it.
        statements: What does it; `{database}` stands for the ledger's database, quoted.
        open: Query of one column that names what is still open; no row means that it is done.
        optional: Left open it takes something away from the service, and nothing from the isolation of rows.
    """

    name: str
    statements: tuple[str, ...]
    open: str
    optional: bool = False


_REACHING = (
    "^(pg_(try_)?advisory_|lo_|loread$|lowrite$|pg_notify$|pg_logical_emit_message$|currtid2$"
    "|pg_(cancel|terminate)_backend$|pg_stat_get_(backend_)?activity$)"
)
"""Functions that take locks, make objects or send words for all sessions of a database, or look past row security.

The last ones let whoever shares a pooled login end the others' sessions, and read what they send.
"""

# The operator ends tenants' sessions as the tenant; a tenant's login is its own, so it meets nobody else's there.
_KEEP_FUNCTIONS = (
    "GRANT EXECUTE ON FUNCTION pg_cancel_backend(int), pg_terminate_backend(int, bigint), pg_stat_get_activity(int), "
    "pg_stat_get_backend_activity(int) "
    "TO flowstone_operator, flowstone_namespace, flowstone_tenant, flowstone_apart, pg_monitor, pg_signal_backend"
)

# Whoever could connect until now keeps that, by a grant of their own: only scopes' logins and newcomers lose it.
_CLOSE_DATABASES = """
DO $$
DECLARE
    target record;
    member record;
BEGIN
    FOR target IN SELECT datname FROM pg_catalog.pg_database WHERE datallowconn LOOP
        FOR member IN
            SELECT r.rolname FROM pg_catalog.pg_roles r
            WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> 'flowstone_operator'
              AND pg_catalog.has_database_privilege(r.oid, target.datname, 'CONNECT')
              AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                WHERE m.member = r.oid AND g.rolname IN
                    ('flowstone_namespace', 'flowstone_tenant', 'flowstone_apart', 'flowstone_pool'))
        LOOP
            EXECUTE pg_catalog.format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I', target.datname, member.rolname);
        END LOOP;
        EXECUTE pg_catalog.format('REVOKE ALL ON DATABASE %I FROM PUBLIC', target.datname);
    END LOOP;
END
$$
"""

_CLOSE_FUNCTIONS = """
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ '{reaching}'
    LOOP
        EXECUTE pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', target.name);
    END LOOP;
END
$$
"""


def _to_public(acl: str) -> str:
    """Return a condition: PUBLIC has some right in this access list."""
    return f"EXISTS (SELECT FROM pg_catalog.aclexplode({acl}) x WHERE x.grantee = 0)"


_DATABASE_ACL = "coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))"
_SCHEMA_ACL = "coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))"
_FUNCTION_ACL = "coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))"

MEASURES: tuple[Measure, ...] = (
    Measure(
        "PUBLIC may connect to a database",
        (
            "GRANT CONNECT ON DATABASE {database} "
            "TO flowstone_operator, flowstone_pool, flowstone_namespace, flowstone_tenant",
            "GRANT TEMPORARY ON DATABASE {database} TO flowstone_operator",
            _CLOSE_DATABASES,
        ),
        f"SELECT d.datname::text FROM pg_catalog.pg_database d WHERE d.datallowconn AND {_to_public(_DATABASE_ACL)}",
    ),
    Measure(
        "PUBLIC may use schema public",
        (
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            "GRANT USAGE ON SCHEMA public TO flowstone_namespace, flowstone_tenant, flowstone_pool",
        ),
        "SELECT n.nspname::text FROM pg_catalog.pg_namespace n "
        f"WHERE n.nspname = 'public' AND {_to_public(_SCHEMA_ACL)}",
    ),
    Measure(
        "PUBLIC may call functions that reach other sessions",
        (_KEEP_FUNCTIONS, _CLOSE_FUNCTIONS.replace("{reaching}", _REACHING)),
        "SELECT DISTINCT p.proname::text FROM pg_catalog.pg_proc p "
        "WHERE p.pronamespace = 'pg_catalog'::regnamespace "
        f"AND p.proname ~ '{_REACHING}' AND {_to_public(_FUNCTION_ACL)}",
    ),
    Measure(
        "PUBLIC may call what flowstone_owner makes",
        ("ALTER DEFAULT PRIVILEGES FOR ROLE flowstone_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",),
        "SELECT 'functions to come' WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_default_acl a "
        "WHERE a.defaclnamespace = 0 AND a.defaclobjtype = 'f' AND a.defaclrole = 'flowstone_owner'::regrole "
        f"AND NOT {_to_public('a.defaclacl')}) "
        "UNION ALL SELECT p.proname::text FROM pg_catalog.pg_proc p "
        f"WHERE p.pronamespace = 'flowstone'::regnamespace AND {_to_public(_FUNCTION_ACL)}",
    ),
    Measure(
        "a session may fill the disk with temporary files",
        (f"ALTER DATABASE {{database}} SET temp_file_limit = '{TEMP_FILES}'",),
        """
        SELECT 'temp_file_limit' WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) AS c (word)
            WHERE s.setrole = 0 AND c.word ^@ 'temp_file_limit=' AND s.setdatabase = (
                SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
        """,
        optional=True,
    ),
    Measure(
        "pg_stat_statements may keep the verifier of a password",
        ("GRANT SET ON PARAMETER pg_stat_statements.track TO flowstone_operator",),
        """
        SELECT 'pg_stat_statements.track' WHERE NOT pg_catalog.has_parameter_privilege(
            'flowstone_operator', 'pg_stat_statements.track', 'SET')
        """,
        optional=True,
    ),
    Measure(
        "a transaction may outlive its session, and its login",
        (),
        """
        SELECT 'max_prepared_transactions = ' || current_setting('max_prepared_transactions')
        WHERE current_setting('max_prepared_transactions') <> '0'
        """,
        optional=True,
    ),
    Measure(
        "the operator may not make databases",
        ("ALTER ROLE flowstone_operator CREATEDB",),
        """
        SELECT 'CREATEDB' FROM pg_catalog.pg_roles r
        WHERE r.rolname = 'flowstone_operator' AND NOT (r.rolcreatedb OR r.rolsuper)
        """,
        optional=True,
    ),
    Measure(
        "the operator may not make schemas",
        ("GRANT CREATE ON DATABASE {database} TO flowstone_operator",),
        """
        SELECT 'CREATE on this database'
        WHERE NOT pg_catalog.has_database_privilege('flowstone_operator', pg_catalog.current_database(), 'CREATE')
        """,
        optional=True,
    ),
    Measure(
        "a language or wrapper leads out of the database",
        (),
        """
        SELECT l.lanname::text FROM pg_catalog.pg_language l
        WHERE NOT l.lanpltrusted AND l.lanname NOT IN ('c', 'internal')
        UNION ALL
        SELECT e.extname::text FROM pg_catalog.pg_extension e
        WHERE e.extname IN ('dblink', 'postgres_fdw', 'file_fdw', 'adminpack')
        """,
    ),
    Measure(
        "a role of FlowStone's own may what it should not",
        (),
        """
        SELECT r.rolname::text FROM pg_catalog.pg_roles r
        WHERE r.rolname ^@ 'flowstone_' AND (r.rolsuper OR r.rolreplication
            OR (r.rolcanlogin AND r.rolname IN
                ('flowstone_owner', 'flowstone_tenant', 'flowstone_apart', 'flowstone_namespace')))
        """,
    ),
)
"""All that is done and read back, in this order."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is still open of one measure."""

    measure: Measure
    open: tuple[str, ...]


def script(database: str) -> str:
    """Return the statements as a script for an administrator, each measure under its name.

    Args:
        database: The ledger's database, quoted.
    """
    named = [(measure.name, filled(measure, database)) for measure in MEASURES if measure.statements]
    return "\n".join(f"-- {name}\n" + "".join(f"{one};\n" for one in statements) for name, statements in named)


def filled(measure: Measure, database: str) -> list[str]:
    """Return a measure's statements for one database, whose name is quoted."""
    return [statement.strip().replace("{database}", database) for statement in measure.statements]


def verdict(findings: Sequence[Finding], server_version: int) -> Verdict:
    """Return condition `Hardened`: what is open is listed by name.

    Args:
        findings: What the queries named.
        server_version: As in server_version_num.
    """
    stale = _stale(server_version)
    serious = [one for one in findings if one.open and not one.measure.optional]
    shown = "; ".join(f"{one.measure.name}: {_some(one.open)}" for one in findings if one.open)
    if stale:
        return Verdict("False", "ServerTooOld", "; ".join(filter(None, (stale, shown))))
    if serious:
        return Verdict("False", "BootstrapMissing", f"{shown}: run `flowstone bootstrap` as a superuser")
    return Verdict("True", "Hardened", "all measures were read back" + (f"; left open: {shown}" if shown else ""))


def _stale(server_version: int) -> str:
    oldest = OLDEST_SAFE.get(server_version // 10_000)
    if oldest is None or server_version >= oldest:
        return ""
    needed = f"{oldest // 10_000}.{oldest % 10_000}"
    return f"this PostgreSQL is older than {needed} and has known holes in row level security: upgrade to {needed}"


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
