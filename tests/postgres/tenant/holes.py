"""Known holes, as data: each of them is planted by a superuser in a database of its own, and the proof must turn red.

`{a}` and `{b}` are the two canaries' logins, `{ta}` and `{tb}` their tenants' ids.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hole:
    """A way around isolation.

    Attributes:
        plant: What makes it.
        undo: What takes it back where dropping the database does not: roles belong to the server.
    """

    name: str
    plant: tuple[str, ...]
    undo: tuple[str, ...] = ()


LOGIN = "(SELECT s.tenant_id FROM flowstone.login_scope AS s WHERE s.role_name = session_user)"


def of(table: str, *plants: tuple[str, str]) -> list[Hole]:
    """Return holes of a table."""
    return [Hole(f"{table}: {name}", (plant.format(t=table, a="{a}", b="{b}"),)) for name, plant in plants]


def altered(name: str, using: str, check: str) -> tuple[str, str]:
    """Return a changed policy."""
    return name, f"ALTER POLICY tenant_rows ON {{t}} USING ({using}) WITH CHECK ({check})"


MINE = f"tenant_id = {LOGIN}"

POLICIES = (
    ("row security off", "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
    ("not forced", "ALTER TABLE {t} NO FORCE ROW LEVEL SECURITY"),
    ("no tenant floor", "DROP POLICY tenant_floor ON {t}"),
    ("no pool floor", "DROP POLICY pool_floor ON {t}"),
    ("careless USING (true)", "CREATE POLICY careless ON {t} USING (true)"),
    ("careless FOR SELECT", "CREATE POLICY careless ON {t} FOR SELECT TO flowstone_tenant USING (true)"),
    altered("policy on a setting", "tenant_id = current_setting('app.tenant_id', true)", MINE),
    altered("current_user", MINE.replace("session_user", "current_user"), MINE),
    altered("no check", MINE, "true"),
    altered("or true", f"{MINE} OR true", MINE),
    altered(
        "correlated",
        "tenant_id = (SELECT tenant_id FROM (SELECT 1) AS s WHERE EXISTS (SELECT FROM flowstone.login_scope))",
        MINE,
    ),
    ("TRIGGER", "GRANT TRIGGER ON {t} TO flowstone_tenant"),
    ("TRUNCATE", "GRANT TRUNCATE ON {t} TO flowstone_tenant"),
    ("REFERENCES", "GRANT REFERENCES ON {t} TO flowstone_tenant"),
    ("ALL", "GRANT ALL ON {t} TO flowstone_pool"),
    ("UPDATE of the whole", "GRANT UPDATE ON {t} TO flowstone_tenant"),
    ("UPDATE of tenant_id", "GRANT UPDATE (tenant_id) ON {t} TO flowstone_tenant"),
    ("PUBLIC", "GRANT SELECT ON {t} TO PUBLIC"),
    ("PUBLIC by column", "GRANT SELECT (tenant_id) ON {t} TO PUBLIC"),
    ("grant option", "GRANT SELECT ON {t} TO flowstone_tenant WITH GRANT OPTION"),
    ("a login's own grant", "GRANT SELECT ON {t} TO {a}"),
    ("an index without the tenant", "CREATE INDEX ON {t} (note)"),
    ("a global unique key", "CREATE UNIQUE INDEX ON {t} (note, tenant_id)"),
    ("tenant_id from elsewhere", "ALTER TABLE {t} ALTER COLUMN tenant_id SET DEFAULT current_setting('app.tenant')"),
    ("owned by a tenant", "ALTER TABLE {t} OWNER TO {a}"),
    ("a materialised view", "CREATE MATERIALIZED VIEW public.all_rows AS SELECT * FROM {t}"),
)

TABLES: tuple[Hole, ...] = (
    *of("public.booking", *POLICIES),
    *of("flowstone.canary", *POLICIES),
    *of(
        "public.booking_2026",
        ("partition: row security off", "ALTER TABLE {t} DISABLE ROW LEVEL SECURITY"),
        ("partition: not forced", "ALTER TABLE {t} NO FORCE ROW LEVEL SECURITY"),
        ("partition: granted", "GRANT SELECT ON {t} TO PUBLIC"),
        (
            "partition: its own policy",
            "CREATE POLICY mine ON {t} TO flowstone_tenant USING (true); GRANT SELECT ON {t} TO flowstone_tenant",
        ),
    ),
    Hole(
        "floor gone and careless policy",
        (
            "DROP POLICY tenant_floor ON public.booking",
            "CREATE POLICY careless ON public.booking FOR SELECT TO flowstone_tenant USING (true)",
        ),
    ),
    Hole("all policies gone, row security off", (
        "DO $$ DECLARE p record; BEGIN "
        "FOR p IN SELECT polname FROM pg_policy WHERE polrelid = 'public.booking'::regclass "
        "LOOP EXECUTE format('DROP POLICY %I ON public.booking', p.polname); END LOOP; END $$",
        "ALTER TABLE public.booking DISABLE ROW LEVEL SECURITY",
    )),
    Hole(
        "a single-column foreign key",
        (
            "CREATE TABLE public.thing (id bigint PRIMARY KEY)",
            "ALTER TABLE public.booking ADD FOREIGN KEY (id) REFERENCES public.thing NOT VALID",
        ),
    ),
    Hole(
        "a foreign key into all tenants",
        (
            "ALTER TABLE flowstone.canary DROP CONSTRAINT canary_parent_fkey",
            "CREATE UNIQUE INDEX reach ON flowstone.canary (id)",
            "ALTER TABLE flowstone.canary ADD FOREIGN KEY (parent) REFERENCES flowstone.canary (id)",
        ),
    ),
    Hole(
        "a view with its owner's rights",
        (
            "CREATE VIEW public.bookings AS SELECT * FROM public.booking",
            "GRANT SELECT ON public.bookings TO flowstone_tenant",
        ),
    ),
    Hole(
        "somebody's view in a tenant's schema",
        (
            "DO $$ DECLARE base CONSTANT name := left('{a}', -2); BEGIN EXECUTE format('CREATE SCHEMA %I', base); "
            "EXECUTE format('CREATE VIEW %I.shown AS SELECT * FROM flowstone.canary', base); "
            "EXECUTE format('GRANT SELECT ON %I.shown TO {a}', base); END $$",
        ),
    ),
    Hole(
        "a view on a view",
        (
            "CREATE VIEW public.inner_view AS SELECT * FROM flowstone.materialization",
            "CREATE VIEW public.outer_view WITH (security_invoker = false) AS SELECT * FROM public.inner_view",
            "GRANT SELECT ON public.outer_view TO PUBLIC",
        ),
    ),
    Hole(
        "a parent by inheritance",
        (
            "CREATE TABLE public.whole (tenant_id text, note text)",
            "CREATE TABLE public.part (id int) INHERITS (public.whole)",
            "ALTER TABLE public.part ALTER tenant_id SET DEFAULT flowstone.tenant_id()",
            "GRANT SELECT ON public.whole TO flowstone_tenant",
        ),
    ),
    Hole(
        "a table without row security",
        (
            "CREATE TABLE public.forgotten (tenant_id text NOT NULL, note text)",
            "INSERT INTO public.forgotten VALUES ('tenant_a', 'x')",
            "GRANT SELECT ON public.forgotten TO flowstone_tenant",
        ),
    ),
    Hole("a table that all write", ("CREATE TABLE public.open (x int)", "GRANT INSERT ON public.open TO PUBLIC")),
    Hole("a rule", ("CREATE RULE also AS ON INSERT TO public.booking DO ALSO NOTIFY booking",)),
    Hole(
        "a tenant's trigger",
        (
            "CREATE SCHEMA {a} AUTHORIZATION {a}",
            "CREATE FUNCTION {a}.peek() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "ALTER FUNCTION {a}.peek() OWNER TO {a}",
            "CREATE TRIGGER peek BEFORE INSERT ON public.booking FOR EACH ROW EXECUTE FUNCTION {a}.peek()",
        ),
    ),
    Hole("tenant_id may be null", (
        "ALTER TABLE public.booking DROP CONSTRAINT booking_pkey",
        "ALTER TABLE public.booking ALTER tenant_id DROP NOT NULL",
    )),
)  # fmt: skip

LEDGER: tuple[Hole, ...] = (
    Hole("ledger: row security off", ("ALTER TABLE flowstone.materialization DISABLE ROW LEVEL SECURITY",)),
    Hole("logins: row security off", ("ALTER TABLE flowstone.login_scope DISABLE ROW LEVEL SECURITY",)),
    Hole("batches: not forced", ("ALTER TABLE flowstone.batch NO FORCE ROW LEVEL SECURITY",)),
    Hole("ledger: no floor", ("DROP POLICY scope_floor ON flowstone.materialization",)),
    Hole("ledger: reports without a check", (
        "ALTER POLICY scope_reports ON flowstone.materialization WITH CHECK (true)",
    )),
    Hole("the pool's policies can be dropped by a member", (
        "REVOKE SELECT (slot) ON flowstone.login_scope FROM flowstone_pool",
    )),
    Hole("ledger: any state", ("GRANT UPDATE (scope) ON flowstone.materialization TO flowstone_tenant",)),
    Hole("ledger: INSERT", ("GRANT INSERT ON flowstone.materialization TO flowstone_tenant",)),
    Hole("ledger: DELETE", ("GRANT DELETE ON flowstone.batch TO flowstone_tenant",)),
    Hole("registry to be read", ("GRANT SELECT ON flowstone.tenant TO PUBLIC",)),
    Hole("keys to be read", ("GRANT SELECT ON flowstone.context_key TO flowstone_pool",)),
    Hole("all of the logins", ("GRANT SELECT ON flowstone.login_scope TO flowstone_tenant",)),
    Hole("every login's row", (
        "CREATE POLICY careless ON flowstone.login_scope FOR SELECT TO flowstone_tenant USING (true)",
    )),
    Hole("fences to be drawn", ("GRANT USAGE ON SEQUENCE flowstone.batch_fence_seq TO flowstone_tenant",)),
    Hole("a trigger on the ledger", (
        "CREATE TRIGGER also BEFORE UPDATE ON flowstone.batch FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )),
    Hole("a login leads to another tenant", (
        "UPDATE flowstone.login_scope SET tenant_id = '{tb}' WHERE role_name = '{a}'",
    )),
    Hole("a stranger leads to a tenant", (
        "INSERT INTO flowstone.login_scope (role_name, role_oid, scope, slot, tenant_id) "
        "SELECT rolname, oid, 't/c1/{ta}', 'b', '{ta}' FROM pg_roles WHERE rolname = 'postgres'",
    ), ("DELETE FROM flowstone.login_scope WHERE role_name = 'postgres'",)),
    Hole("signatures are not checked", (
        "CREATE OR REPLACE FUNCTION flowstone.context_scope() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, pg_temp SET row_security = on AS "
        "'BEGIN RETURN left(current_setting(''flowstone.context'', true), -76); END'",
    )),
    Hole("contexts do not expire", (
        "DO $$ BEGIN EXECUTE (SELECT replace(pg_get_functiondef('flowstone.context_scope()'::regprocedure), "
        "'<= extract(epoch FROM statement_timestamp())', '< 0')); END $$",
    )),
    Hole("identity by a setting", (
        "CREATE OR REPLACE FUNCTION flowstone.tenant_id() RETURNS text LANGUAGE sql STABLE AS "
        "'SELECT current_setting(''app.tenant_id'', true)'",
    )),
    Hole("contexts for everybody", ("GRANT EXECUTE ON FUNCTION flowstone.context_scope() TO PUBLIC",)),
    Hole("restoring for everybody", (
        "GRANT EXECUTE ON FUNCTION flowstone.restore_protection(regclass) TO flowstone_tenant",
    )),
    Hole("the schema is open", ("GRANT CREATE ON SCHEMA flowstone TO flowstone_tenant",)),
    Hole("the ledger's table is somebody's", ("ALTER TABLE flowstone.tenant OWNER TO postgres",)),
)  # fmt: skip

ROLES: tuple[Hole, ...] = (
    Hole("BYPASSRLS", ("ALTER ROLE {a} BYPASSRLS",)),
    Hole("SUPERUSER", ("ALTER ROLE {a} SUPERUSER",)),
    Hole("CREATEROLE", ("ALTER ROLE {a} CREATEROLE",)),
    Hole("CREATEDB", ("ALTER ROLE {a} CREATEDB",)),
    Hole("REPLICATION", ("ALTER ROLE {a} REPLICATION",)),
    Hole("member of the operator", ("CREATE ROLE inside LOGIN IN ROLE flowstone_tenant, flowstone_operator",), (
        "DROP ROLE inside",
    )),
    Hole("member of the owner", ("GRANT flowstone_owner TO {a}",)),
    Hole("member of the other tenant", ("GRANT {b} TO {a}",)),
    Hole("member of the pool", ("GRANT flowstone_pool TO {a}",)),
    Hole("member of a built-in role", ("GRANT pg_read_all_data TO {a}",)),
    Hole("member of a role of its own", ("CREATE ROLE readers", "GRANT readers TO {a}"), ("DROP ROLE readers",)),
    Hole("stranger in a tenant's login", ("CREATE ROLE nosy LOGIN", "GRANT {a} TO nosy"), ("DROP ROLE nosy",)),
    Hole(
        "group in a built-in role",
        ("GRANT pg_write_all_data TO flowstone_tenant",),
        ("REVOKE pg_write_all_data FROM flowstone_tenant",),
    ),
    Hole("pooled login in the operator", ("CREATE ROLE pooled LOGIN IN ROLE flowstone_pool, flowstone_operator",), (
        "DROP ROLE pooled",
    )),
    Hole("pooled login with BYPASSRLS", ("CREATE ROLE pooled LOGIN BYPASSRLS IN ROLE flowstone_pool",), (
        "DROP ROLE pooled",
    )),
    Hole("group that logs in", ("ALTER ROLE flowstone_tenant LOGIN",), ("ALTER ROLE flowstone_tenant NOLOGIN",)),
    Hole("group with BYPASSRLS", ("ALTER ROLE flowstone_pool BYPASSRLS",), ("ALTER ROLE flowstone_pool NOBYPASSRLS",)),
)  # fmt: skip

DEFINER = (
    "CREATE FUNCTION public.leak() RETURNS bigint LANGUAGE sql SECURITY DEFINER {} AS 'SELECT count(*) FROM booking'"
)

OTHERS: tuple[Hole, ...] = (
    Hole("SECURITY DEFINER without a search path", (
        DEFINER.format(""), "ALTER FUNCTION public.leak() OWNER TO flowstone_owner",
    )),
    Hole("SECURITY DEFINER of a superuser", (DEFINER.format("SET search_path = pg_catalog, public, pg_temp"),)),
    Hole("SECURITY DEFINER with a path that does not end", (
        DEFINER.format("SET search_path = pg_temp, public"), "ALTER FUNCTION public.leak() OWNER TO flowstone_owner",
    )),
    Hole("LEAKPROOF", ("CREATE FUNCTION public.peek(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'",)),
    Hole("sequence", (
        "CREATE SEQUENCE public.numbers", "GRANT USAGE ON SEQUENCE public.numbers TO flowstone_tenant",
    )),
    Hole("sequence to all", ("CREATE SEQUENCE public.numbers", "GRANT SELECT ON SEQUENCE public.numbers TO PUBLIC")),
    Hole("CREATE in public", ("GRANT CREATE ON SCHEMA public TO PUBLIC",)),
    Hole("CREATE in a schema", ("CREATE SCHEMA shop", "GRANT CREATE ON SCHEMA shop TO flowstone_tenant")),
    Hole("CREATE on the database", (
        "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO flowstone_tenant', current_database()); END $$",
    )),
    Hole("default privileges", ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO flowstone_tenant",)),
    Hole("default privileges to all", ("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC",)),
    Hole("a setting of the server", ("GRANT SET ON PARAMETER session_replication_role TO flowstone_tenant",), (
        "REVOKE SET ON PARAMETER session_replication_role FROM flowstone_tenant",
    )),
    Hole("files to be read", ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO PUBLIC",)),
    Hole("passwords to be read", ("GRANT SELECT ON pg_catalog.pg_authid TO flowstone_tenant",)),
    Hole("large objects to be read", ("GRANT SELECT ON pg_catalog.pg_largeobject TO PUBLIC",)),
    Hole("statistics to be read", ("GRANT SELECT ON pg_catalog.pg_statistic TO flowstone_tenant",)),
    Hole("sessions to be ended", (
        "CREATE FUNCTION public.finish(int) RETURNS boolean LANGUAGE sql SECURITY DEFINER "
        "AS 'SELECT pg_terminate_backend($1)'",
    )),
)  # fmt: skip

HOLES: tuple[Hole, ...] = (*TABLES, *LEDGER, *ROLES, *OTHERS)
