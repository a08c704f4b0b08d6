# ruff: noqa: S608 - all SQL of this module is put together from its own constants and quoted role names
"""The database of a tenant of isolation Database: what it must be like, and the statements that make it so. Pure.

Nobody but the tenant's two logins and the operator may connect. It belongs to a role that cannot log in, since an owner
could let everybody in. In schema `public` the tenant makes what it likes. Schema `flowstone` holds the outcomes of its
batches under their fences, in tables of the names and columns that workers know from the ledger, so that they report
here with the same statements, in the same transaction as the tenant's own writes:

    running -> succeeded | failed      by a worker, under the row's fence
    running -> withdrawn               by the operator, before the ledger gives the partition to anybody else
    any     -> running                 by the operator, under a greater fence

What it is like is asked of the catalogue as a set of lines and compared with the set of wanted ones; what is missing or
too much names itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from flowstone.tenant.statements import KINDS, identifier, literal, shared

OPERATOR = "flowstone_operator"
ERROR_BYTES = 8192
"""Longest error of a partition, as in the ledger."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS flowstone.batch (
        fence bigint PRIMARY KEY, backfill uuid NOT NULL,
        state text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
        reporting boolean NOT NULL DEFAULT false)""",
    f"""CREATE TABLE IF NOT EXISTS flowstone.materialization (
        scope text COLLATE "C" NOT NULL, asset text COLLATE "C" NOT NULL, partition text COLLATE "C" NOT NULL,
        backfill uuid NOT NULL, fence bigint NOT NULL, attempts integer NOT NULL,
        state text COLLATE "C" NOT NULL CHECK (state IN ('running', 'succeeded', 'failed', 'withdrawn')),
        finished_at timestamptz, error text CHECK (octet_length(error) <= {ERROR_BYTES}),
        PRIMARY KEY (scope, asset, partition))""",
    "CREATE INDEX IF NOT EXISTS materialization_fence_idx ON flowstone.materialization (fence)",
)
"""The latest hand-out of each partition, and the batches that are not settled."""

# For everybody, because nobody but the two logins has a right on the tables, and logins come and go.
_POLICIES = (
    "CREATE POLICY operator_rows ON flowstone.batch TO flowstone_operator USING (true) WITH CHECK (true)",
    "CREATE POLICY scope_reads ON flowstone.batch FOR SELECT USING (true)",
    "CREATE POLICY scope_reports ON flowstone.batch FOR UPDATE USING (state = 'open') WITH CHECK (reporting)",
    "CREATE POLICY operator_rows ON flowstone.materialization TO flowstone_operator USING (true) WITH CHECK (true)",
    "CREATE POLICY scope_reads ON flowstone.materialization FOR SELECT USING (true)",
    "CREATE POLICY scope_reports ON flowstone.materialization FOR UPDATE USING (state = 'running') "
    "WITH CHECK (state IN ('succeeded', 'failed'))",
    "ALTER TABLE flowstone.batch ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE flowstone.materialization ENABLE ROW LEVEL SECURITY",
)

_ENDS = "(state = ANY (ARRAY['succeeded'::text, 'failed'::text]))"
_WANTED_POLICIES = (
    "policy batch.operator_rows * TO flowstone_operator: true: true",
    "policy batch.scope_reads r TO PUBLIC: true: -",
    "policy batch.scope_reports w TO PUBLIC: (state = 'open'::text): reporting",
    "policy materialization.operator_rows * TO flowstone_operator: true: true",
    "policy materialization.scope_reads r TO PUBLIC: true: -",
    f"policy materialization.scope_reports w TO PUBLIC: (state = 'running'::text): {_ENDS}",
    "row security of batch",
    "row security of materialization",
)

_REPORTED = {"batch": ("reporting",), "materialization": ("state", "error", "finished_at")}
"""Columns that a worker writes."""

_OPEN_SCHEMAS = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT format('SCHEMA %I', n.nspname) AS object, x.grantee
        FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) x
        WHERE n.nspname IN ('flowstone', 'public') AND x.grantee <> n.nspowner
        UNION
        SELECT format('TABLE %s', c.oid::regclass), x.grantee
        FROM pg_catalog.pg_class c, LATERAL (
            SELECT c.relacl AS acl UNION ALL SELECT a.attacl FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid) l,
            pg_catalog.aclexplode(l.acl) x
        WHERE c.relnamespace = 'flowstone'::regnamespace AND c.relkind IN ('r', 'v') AND x.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', found.object,
            CASE found.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(found.grantee)) END);
    END LOOP;
END
$$
"""

_NO_POLICIES = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT p.polname AS name, p.polrelid::regclass AS target FROM pg_catalog.pg_policy p
        WHERE p.polrelid IN ('flowstone.batch'::regclass, 'flowstone.materialization'::regclass)
    LOOP
        EXECUTE format('DROP POLICY %I ON %s', found.name, found.target);
    END LOOP;
    FOR found IN SELECT t.tgname AS name, t.tgrelid::regclass AS target FROM pg_catalog.pg_trigger t
        WHERE NOT t.tgisinternal
          AND t.tgrelid IN ('flowstone.batch'::regclass, 'flowstone.materialization'::regclass)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.name, found.target);
    END LOOP;
END
$$
"""

# {name} is the database as a literal.
_CLOSE = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT DISTINCT x.grantee FROM pg_catalog.pg_database d,
            pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) x
        WHERE d.datname = {name} AND x.grantee <> d.datdba
    LOOP
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM %s CASCADE', {name},
            CASE found.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(found.grantee)) END);
    END LOOP;
END
$$
"""

_WHO = "CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END"
_MORE = "CASE WHEN x.is_grantable THEN ' and to be passed on' ELSE '' END"

_FOUND_OUTSIDE = f"""
    SELECT 'it belongs to ' || pg_get_userbyid(d.datdba) FROM pg_database d WHERE d.datname = {{name}}
    UNION ALL SELECT 'nobody may connect' FROM pg_database d WHERE d.datname = {{name}} AND NOT d.datallowconn
    UNION ALL SELECT 'it may be copied' FROM pg_database d WHERE d.datname = {{name}} AND d.datistemplate
    UNION ALL SELECT x.privilege_type || ' TO ' || {_WHO} || {_MORE} FROM pg_database d,
        aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x
    WHERE d.datname = {{name}} AND x.grantee <> d.datdba
    UNION ALL SELECT 'its owner may log in' FROM pg_roles r
    WHERE r.rolname = {{owner}} AND (r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolbypassrls)
    UNION ALL SELECT 'its owner has the member ' || pg_get_userbyid(m.member) FROM pg_auth_members m
    JOIN pg_roles r ON r.oid = m.roleid WHERE r.rolname = {{owner}} AND m.member <> '{OPERATOR}'::regrole
"""

_FOUND_INSIDE = f"""
    SELECT 'schema ' || n.nspname || ' of ' || pg_get_userbyid(n.nspowner) FROM pg_namespace n
    WHERE n.nspname IN ('flowstone', 'public') OR pg_get_userbyid(n.nspowner) IN ({{logins}}) AND n.nspname !~ '^pg_'
    UNION ALL SELECT 'schema ' || n.nspname || ': ' || x.privilege_type || ' TO ' || {_WHO} || {_MORE}
    FROM pg_namespace n, aclexplode(n.nspacl) x
    WHERE n.nspname IN ('flowstone', 'public') AND x.grantee <> n.nspowner
    UNION ALL SELECT 'table ' || c.relname || ' of ' || pg_get_userbyid(c.relowner)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'flowstone' AND c.relkind NOT IN ('i', 't')
    UNION ALL SELECT 'table ' || c.relname || ': ' || x.privilege_type || l.named || ' TO ' || {_WHO} || {_MORE}
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (
        SELECT c.relacl AS acl, '' AS named
        UNION ALL SELECT a.attacl, ' (' || a.attname || ')' FROM pg_attribute a WHERE a.attrelid = c.oid) l
    CROSS JOIN aclexplode(l.acl) x WHERE n.nspname = 'flowstone' AND x.grantee <> c.relowner
    UNION ALL SELECT 'policy ' || c.relname || '.' || p.polname || ' ' || p.polcmd::text || ' TO ' || (
            SELECT string_agg(CASE u.role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(u.role)::text END, ',')
            FROM unnest(p.polroles) u (role)) || CASE WHEN p.polpermissive THEN '' ELSE ' restrictive' END
        || ': ' || coalesce(pg_get_expr(p.polqual, c.oid), '-')
        || ': ' || coalesce(pg_get_expr(p.polwithcheck, c.oid), '-')
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'flowstone'
    UNION ALL SELECT 'row security of ' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'flowstone' AND c.relkind = 'r' AND c.relrowsecurity
    UNION ALL SELECT 'trigger ' || t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'flowstone' AND NOT t.tgisinternal
    UNION ALL SELECT 'function ' || p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'flowstone'
    UNION ALL SELECT 'made by ' || pg_get_userbyid(d.defaclrole) || ': ' || d.defaclobjtype::text || ' for ' || {_WHO}
    FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) x
    WHERE d.defaclnamespace = 'public'::regnamespace AND pg_get_userbyid(x.grantee) IN ({{logins}})
        AND x.grantee <> d.defaclrole
    UNION ALL SELECT 'extension ' || e.extname FROM pg_extension e
    WHERE e.extname IN ('dblink', 'postgres_fdw', 'file_fdw', 'adminpack')
    UNION ALL SELECT 'language ' || l.lanname FROM pg_language l
    WHERE NOT l.lanpltrusted AND l.lanname NOT IN ('c', 'internal')
"""


@dataclass(frozen=True, slots=True)
class Names:
    """Who has to do with a tenant's database.

    Attributes:
        database: Its name, which is random and never used again.
        logins: Those of the tenant's logins that are to be let in.
    """

    database: str
    logins: tuple[str, ...]

    @property
    def owner(self) -> str:
        """The role that it belongs to; nobody can log in as it."""
        return f"{self.database}_o"


def found_outside(names: Names) -> str:
    """Return the query, for the ledger's database, of what is not as it should be about the database from outside."""
    wanted = [f"it belongs to {names.owner}", f"CONNECT TO {OPERATOR}"]
    wanted += [f"{right} TO {login}" for login in names.logins for right in ("CONNECT", "TEMPORARY")]
    return _compared(wanted, _FOUND_OUTSIDE.format(name=literal(names.database), owner=literal(names.owner)))


def found_inside(names: Names) -> str:
    """Return the query, for the tenant's own database, of what is not as it should be in it."""
    wanted = [
        f"schema flowstone of {names.owner}",
        "schema public of pg_database_owner",
        f"schema flowstone: USAGE TO {OPERATOR}",
        *(f"table {table} of {names.owner}" for table in _REPORTED),
        *(
            f"table {table}: {right} TO {OPERATOR}"
            for table in _REPORTED
            for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
        ),
        *_WANTED_POLICIES,
        *(line for login in names.logins for line in _wanted_of(login)),
        *(f"made by {maker}: {kind} for {user}" for maker, user in permutations(names.logins, 2) for kind in KINDS),
    ]
    logins = ", ".join(literal(one) for one in names.logins) or "''"
    return _compared(wanted, _FOUND_INSIDE.format(logins=logins))


def _wanted_of(login: str) -> Iterator[str]:
    yield f"schema flowstone: USAGE TO {login}"
    yield f"schema public: USAGE TO {login}"
    yield f"schema public: CREATE TO {login}"
    for table, columns in _REPORTED.items():
        yield f"table {table}: SELECT TO {login}"
        yield from (f"table {table}: UPDATE ({column}) TO {login}" for column in columns)


def _compared(wanted: Iterable[str], found: str) -> str:
    """Return the query of what is in one of two sets of lines and not in the other."""
    rows = ", ".join(f"({literal(line)})" for line in wanted)
    # A default privilege is granted by several words, and a line is a line however often it is found.
    return (
        f"WITH wanted (line) AS (VALUES {rows}), found (line) AS ({found}) "
        "SELECT 'too much: ' || line FROM (SELECT line FROM found EXCEPT SELECT line FROM wanted) AS e (line) "
        "UNION ALL "
        "SELECT 'missing: ' || line FROM (SELECT line FROM wanted EXCEPT SELECT line FROM found) AS m (line) "
        "ORDER BY 1"
    )


def make_owner(names: Names) -> str:
    """Return the statement that makes the owner; the operator is its only member, as of the logins."""
    return f"CREATE ROLE {identifier(names.owner)} NOLOGIN ROLE {OPERATOR}"


def make_database(names: Names) -> str:
    """Return the statement that makes the database; it stays shut until `close` has said who may come in."""
    database, owner = identifier(names.database), identifier(names.owner)
    return f"CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ALLOW_CONNECTIONS false"


def close(names: Names) -> list[str]:
    """Return the statements, for the ledger's database, that let in whom it should and nobody else; one transaction."""
    database = identifier(names.database)
    return [
        f"SET LOCAL ROLE {identifier(names.owner)}",
        _CLOSE.format(name=literal(names.database)),
        f"GRANT CONNECT ON DATABASE {database} TO {OPERATOR}",
        *(f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {identifier(login)}" for login in names.logins),
        f"ALTER DATABASE {database} ALLOW_CONNECTIONS true IS_TEMPLATE false",
        "RESET ROLE",
    ]


def furnish(names: Names, found: Sequence[str]) -> list[str]:
    """Return the statements, for the tenant's own database, that put right what was found in it; one transaction.

    Policies are left alone unless there is something about them: changing one waits for every open transaction.
    """
    owner = identifier(names.owner)
    statements = [f"SET LOCAL ROLE {owner}", "CREATE SCHEMA IF NOT EXISTS flowstone", *_TABLES, _OPEN_SCHEMAS]
    if any(word in line for line in found for word in (": policy ", ": row security ", ": trigger ")):
        statements += [_NO_POLICIES, *_POLICIES]
    statements += [
        f"GRANT USAGE ON SCHEMA flowstone TO {OPERATOR}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON flowstone.batch, flowstone.materialization TO {OPERATOR}",
    ]
    statements += [line for login in names.logins for line in _granted(identifier(login))]
    return [*statements, "RESET ROLE", *shared("public", [identifier(login) for login in names.logins])]


def _granted(login: str) -> Iterator[str]:
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {login}"
    yield f"GRANT USAGE ON SCHEMA flowstone TO {login}"
    for table, columns in _REPORTED.items():
        yield f"GRANT SELECT, UPDATE ({', '.join(columns)}) ON flowstone.{table} TO {login}"
