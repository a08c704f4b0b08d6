# ruff: noqa: S608 - all SQL of this module is put together from its own constants
"""Attacks from a login with a schema or a database of its own: it may make functions, tables and views there. Pure.

`{own_schema}` and `{own_database}` are where the attacker may do what it likes; `\\connect` stands for a new session.
"""

from __future__ import annotations

from flowstone.tenant.attack import DATABASE, NOTHING, REFUSED, Attack, after, refused

CONNECT = "\\connect "
"""Beginning of a statement that opens a session to another database with the same login and password."""

CONNECTED = "connected"
SHUT = "no entry"
"""Outcomes of such a statement."""

_FOREIGN = "SELECT FROM flowstone.canary WHERE tenant_id IS DISTINCT FROM {own}"
_TELL = (
    "CREATE FUNCTION {own_schema}.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
    "'BEGIN IF $1 ^@ ''victim'' THEN RAISE EXCEPTION SQLSTATE ''ZZZZZ''; END IF; RETURN true; END'"
)

SCHEMA: tuple[Attack, ...] = (
    Attack("schema/makes its own", ("CREATE TABLE {own_schema}.made (x int)",), ("done",)),
    Attack("schema/uses its own", ("SELECT FROM {own_schema}.kept",), ("1 rows",)),
    *refused(
        "schema",
        {
            "reads the other's": "SELECT FROM {victim_schema}.kept",
            "writes the other's": "INSERT INTO {victim_schema}.kept VALUES ('x')",
            "makes in the other's": "CREATE TABLE {victim_schema}.intruder (x int)",
            "drops the other's": "DROP SCHEMA {victim_schema} CASCADE",
            "drops its own": "DROP SCHEMA {own_schema} CASCADE",
            "takes its own": "ALTER SCHEMA {own_schema} OWNER TO CURRENT_USER",
            "renames its own": "ALTER SCHEMA {own_schema} RENAME TO intruder",
            "makes another": "CREATE SCHEMA intruder",
            "child of a table of all": "CREATE TABLE {own_schema}.child () INHERITS (flowstone.canary)",
            "key into a table of all": "CREATE TABLE {own_schema}.child (tenant_id text, id bigint, "
            "FOREIGN KEY (tenant_id, id) REFERENCES flowstone.canary (tenant_id, id))",
            "takes the ledger's name": "ALTER TABLE {own_schema}.kept SET SCHEMA flowstone",
            "part of a table of all": "CREATE TABLE {own_schema}.part PARTITION OF flowstone.canary DEFAULT",
            "gives to its group": "ALTER TABLE {own_schema}.kept OWNER TO flowstone_tenant",
            "gives to the operator": "ALTER TABLE {own_schema}.kept OWNER TO flowstone_operator",
            "leakproof": "CREATE FUNCTION {own_schema}.f(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'",
            "in C": "CREATE FUNCTION {own_schema}.f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
        },
    ),
    Attack(
        "schema/its trigger on a table of all",
        (
            "CREATE FUNCTION {own_schema}.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE TRIGGER intruder BEFORE INSERT ON flowstone.canary FOR EACH ROW EXECUTE FUNCTION {own_schema}.f()",
        ),
    ),
    *after(
        "schema",
        {
            "lets everybody in": ("GRANT ALL ON SCHEMA {own_schema} TO PUBLIC",),
            "lets the other in": ("GRANT ALL ON SCHEMA {own_schema} TO {victim_role}",),
        },
        "SELECT FROM pg_namespace n, aclexplode(n.nspacl) x WHERE n.nspname = {own_schema_name} "
        "AND x.grantee IN (0, to_regrole({victim_role_name}))",
        REFUSED,
        NOTHING,
    ),
    Attack(
        "schema/function that tells",
        (_TELL, "SELECT FROM flowstone.canary WHERE {own_schema}.tell(note) AND tenant_id <> {own}"),
        (NOTHING,),
    ),
    Attack(
        "schema/operator that tells",
        (
            _TELL,
            "CREATE FUNCTION {own_schema}.tells(text, text) RETURNS boolean LANGUAGE sql "
            "AS 'SELECT {own_schema}.tell($1)'",
            "CREATE OPERATOR {own_schema}.<<< (FUNCTION = {own_schema}.tells, LEFTARG = text, RIGHTARG = text)",
            "SELECT FROM flowstone.canary WHERE note OPERATOR({own_schema}.<<<) 'x' AND tenant_id <> {own}",
        ),
        (NOTHING,),
    ),
    Attack(
        "schema/estimator that tells",
        (
            _TELL,
            "CREATE FUNCTION {own_schema}.tells(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001 "
            "AS 'BEGIN RETURN {own_schema}.tell($1) AND {own_schema}.tell($2); END'",
            "CREATE OPERATOR {own_schema}.<<< (FUNCTION = {own_schema}.tells, LEFTARG = text, RIGHTARG = text, "
            "RESTRICT = scalarltsel, JOIN = scalarltjoinsel)",
            "SELECT FROM flowstone.canary WHERE note OPERATOR({own_schema}.<<<) 'x' AND tenant_id <> {own}",
        ),
        (NOTHING,),
    ),
    *after(
        "schema",
        {
            "definer of its own": (
                "CREATE FUNCTION {own_schema}.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER "
                "AS 'SELECT count(*) FROM flowstone.canary WHERE tenant_id <> flowstone.tenant_id() "
                "HAVING count(*) > 0'",
                "CREATE TABLE {own_schema}.seen AS SELECT {own_schema}.f() AS n",
            ),
            "copy of a table of all": ("CREATE TABLE {own_schema}.seen AS SELECT 1 AS n " + _FOREIGN[7:],),
            "materialised view": ("CREATE MATERIALIZED VIEW {own_schema}.seen AS SELECT 1 AS n " + _FOREIGN[7:],),
            "view": ("CREATE VIEW {own_schema}.seen AS SELECT 1 AS n " + _FOREIGN[7:],),
        },
        "SELECT FROM {own_schema}.seen WHERE n IS NOT NULL",
    ),
    *after(
        "schema",
        {
            "login table of its own": (
                "CREATE TABLE {own_schema}.login_scope AS SELECT session_user::text AS role_name, "
                "'x'::text AS scope, 'x'::text AS tenant_id",
                "SET search_path = {own_schema}, pg_catalog, flowstone",
            ),
            "equality of its own": (
                "CREATE FUNCTION {own_schema}.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
                "CREATE OPERATOR {own_schema}.= (FUNCTION = {own_schema}.same, LEFTARG = text, RIGHTARG = text)",
                "SET search_path = {own_schema}, pg_catalog",
            ),
        },
        "SELECT FROM flowstone.canary WHERE tenant_id OPERATOR(pg_catalog.<>) {own}",
    ),
)
"""From a login with a schema of its own in the ledger's database."""

_ROW = "flowstone.materialization"
_BATCH = "flowstone.batch"

OWN_DATABASE: tuple[Attack, ...] = (
    Attack("database/connects to its own", (CONNECT + "{own_database}",), (CONNECTED,)),
    Attack("database/makes its own", ("CREATE TABLE made (x int)",), ("done",)),
    Attack(
        "database/marks its batch", (f"UPDATE {_BATCH} SET reporting = true WHERE fence = {{own_fence}}",), ("1 rows",)
    ),
    Attack("database/reports its partition", (f"UPDATE {_ROW} SET state = 'failed', error = 'x'",), ("1 rows",)),
    Attack("database/connects to the other's", (CONNECT + "{victim_database}",), (SHUT,)),
    *(
        Attack(f"database/connects to {name}", (CONNECT + place,), (SHUT,), hardening=DATABASE)
        for name, place in (("the ledger's", "{ledger}"), ("postgres", "postgres"), ("template1", "template1"))
    ),
    *refused(
        "database",
        {
            "takes it": "ALTER DATABASE {own_database} OWNER TO CURRENT_USER",
            "renames it": "ALTER DATABASE {own_database} RENAME TO intruder",
            "makes it a template": "ALTER DATABASE {own_database} IS_TEMPLATE true",
            "sets something for all": "ALTER DATABASE {own_database} SET search_path = pg_temp",
            "opens the other's": "ALTER DATABASE {victim_database} IS_TEMPLATE true",
            "becomes its owner": "SET ROLE {own_owner}",
            "becomes the other's owner": "SET ROLE {victim_owner}",
            "becomes the other": "SET ROLE {victim_role}",
            "becomes the operator": "SET ROLE flowstone_operator",
            "joins the tenants": "GRANT flowstone_tenant TO CURRENT_USER",
            "makes a role": "CREATE ROLE canary_intruder LOGIN",
            "no limit": "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
            "the other's password": "ALTER ROLE {victim_role} PASSWORD 'x'",
            "makes a schema": "CREATE SCHEMA intruder",
            "takes schema public": "ALTER SCHEMA public OWNER TO CURRENT_USER",
            "drops the outcomes": "DROP SCHEMA flowstone CASCADE",
            "makes a table beside the outcomes": "CREATE TABLE flowstone.intruder (x int)",
            "event trigger": "CREATE EVENT TRIGGER intruder ON ddl_command_start EXECUTE FUNCTION suppress()",
            "untrusted function": "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
            "ends the other's session": "SELECT pg_terminate_backend({victim_pid})",
            "reads a file": "SELECT pg_read_file('PG_VERSION')",
            "runs a program": "COPY (SELECT 1) TO PROGRAM 'cat'",
            "reads passwords": "SELECT rolpassword FROM pg_catalog.pg_authid",
            "publication of all": "CREATE PUBLICATION intruder FOR ALL TABLES",
            "subscription": "CREATE SUBSCRIPTION intruder CONNECTION 'host=/nowhere' PUBLICATION x "
            "WITH (connect = false)",
        },
    ),
    *(
        Attack(f"database/extension {name}", (f"CREATE EXTENSION {name}",), (REFUSED, "0A000", "58P01", "22023"))
        for name in ("dblink", "postgres_fdw", "file_fdw", "pg_trgm")
    ),
    Attack("database/drops the other's", ("COMMIT", "DROP DATABASE {victim_database}")),
    Attack("database/drops it", ("COMMIT", "DROP DATABASE {own_database}")),
    Attack("database/copies the other's", ("COMMIT", "CREATE DATABASE template0 TEMPLATE {victim_database}")),
    *after(
        "database",
        {
            "lets everybody in": ("GRANT CONNECT ON DATABASE {own_database} TO PUBLIC",),
            "lets the other in": ("GRANT CONNECT ON DATABASE {own_database} TO {victim_role}",),
        },
        "SELECT FROM pg_database d, aclexplode(d.datacl) x WHERE d.datname = current_database() "
        "AND x.grantee IN (0, to_regrole({victim_role_name}))",
        REFUSED,
        NOTHING,
    ),
    Attack(
        "database/words of the other",
        (
            "SELECT FROM pg_catalog.pg_stat_activity WHERE usename = {victim_role_name} "
            "AND query <> '<insufficient privilege>'",
        ),
        (NOTHING, REFUSED),
    ),
    *refused(
        "fence",
        {
            "raises it": f"UPDATE {_ROW} SET fence = fence + 1",
            "takes another partition": f"UPDATE {_ROW} SET partition = 'x'",
            "makes a row": f"INSERT INTO {_ROW} (scope, asset, partition, backfill, fence, attempts, state) "
            "VALUES ('x', 'x', 'x', gen_random_uuid(), 1, 0, 'running')",
            "deletes a row": f"DELETE FROM {_ROW}",
            "empties it": f"TRUNCATE {_ROW}",
            "withdraws": f"UPDATE {_ROW} SET state = 'withdrawn' WHERE state = 'running'",
            "closes its batch": f"UPDATE {_BATCH} SET state = 'closed'",
            "unmarks its batch": f"UPDATE {_BATCH} SET reporting = false",
            "makes a batch": f"INSERT INTO {_BATCH} (fence, backfill) VALUES (1, gen_random_uuid())",
            "deletes its batch": f"DELETE FROM {_BATCH}",
            "row security off": f"ALTER TABLE {_ROW} DISABLE ROW LEVEL SECURITY",
            "policy": f"CREATE POLICY intruder ON {_ROW} USING (true)",
            "trigger": f"CREATE TRIGGER intruder AFTER UPDATE ON {_ROW} "
            "EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            "locks them all": f"LOCK TABLE {_ROW} IN EXCLUSIVE MODE NOWAIT",
        },
    ),
    Attack(
        "fence/runs again",
        (f"UPDATE {_ROW} SET state = 'succeeded'", f"UPDATE {_ROW} SET error = 'x' WHERE state = 'succeeded'"),
        (NOTHING,),
    ),
)
"""From a login with a database of its own, in it."""
