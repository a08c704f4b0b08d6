"""Attacks by other routes: roles, settings, objects, functions, files, other sessions. Pure."""

from __future__ import annotations

from flowstone.tenant.attack import DATABASE, FUNCTIONS, NOTHING, REFUSED, Attack, after, refused

_FOREIGN = "SELECT FROM flowstone.canary WHERE tenant_id IS DISTINCT FROM {own}"
_LOGIN_TABLE = (
    "CREATE TEMPORARY TABLE login_scope AS SELECT session_user::text AS role_name, {victim}::text AS tenant_id, "
    "{victim_scope}::text AS scope"
)

ROLES: tuple[Attack, ...] = (
    *refused(
        "role",
        {
            "set operator": "SET ROLE flowstone_operator",
            "set owner": "SET ROLE flowstone_owner",
            "set pool": "SET ROLE flowstone_pool",
            "set namespace": "SET ROLE flowstone_namespace",
            "set victim": "SET ROLE {victim_name}",
            "set local": "SET LOCAL ROLE flowstone_operator",
            "set by function": "SELECT set_config('role', 'flowstone_operator', true)",
            "set in a block": "DO 'BEGIN SET ROLE flowstone_operator; END'",
            "set built-in": "SET ROLE pg_read_all_data",
            "session of the victim": "SET SESSION AUTHORIZATION {victim_name}",
            "session by function": "SELECT set_config('session_authorization', {victim_role}, true)",
            "grant operator": "GRANT flowstone_operator TO CURRENT_USER",
            "grant victim": "GRANT {victim_name} TO CURRENT_USER",
            "grant its group": "GRANT flowstone_tenant TO flowstone_pool",
            "make": "CREATE ROLE canary_intruder LOGIN",
            "superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
            "bypass": "ALTER ROLE CURRENT_USER BYPASSRLS",
            "no limit": "ALTER ROLE CURRENT_USER CONNECTION LIMIT -1",
            "victim's password": "ALTER ROLE {victim_name} PASSWORD 'x'",
            "victim's settings": "ALTER ROLE {victim_name} SET search_path = pg_temp",
            "settings of the database": "ALTER ROLE ALL SET search_path = pg_temp",
            "drop victim": "DROP ROLE {victim_name}",
            "drop owned": "DROP OWNED BY {victim_name}",
            "add to a group": "ALTER GROUP flowstone_operator ADD USER CURRENT_USER",
            "longer valid": "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'",
            "comment": "COMMENT ON ROLE flowstone_tenant IS 'x'",
            "admit to its group": "ALTER GROUP flowstone_tenant ADD USER {victim_name}",
            "rule its group": "GRANT flowstone_tenant TO CURRENT_USER WITH ADMIN OPTION",
            "shut the victim out": "REVOKE flowstone_tenant FROM {victim_name}",
            "victim's settings here": "ALTER ROLE {victim_name} IN DATABASE {database} SET search_path = pg_temp",
            "make databases": "ALTER ROLE CURRENT_USER CREATEDB",
            "replicate": "ALTER ROLE CURRENT_USER REPLICATION",
            "reassign owned": "REASSIGN OWNED BY flowstone_owner TO CURRENT_USER",
        },
    ),
    *(
        Attack(f"role/group's {name}", ("SET ROLE flowstone_tenant", statement))
        for name, statement in (
            ("limit", "ALTER ROLE flowstone_tenant CONNECTION LIMIT 0"),
            ("login", "ALTER ROLE flowstone_tenant LOGIN"),
            ("inheritance", "ALTER ROLE flowstone_tenant NOINHERIT"),
        )
    ),
    Attack(
        "role/group's entry",
        (
            "SET ROLE flowstone_tenant",
            "REVOKE CONNECT ON DATABASE {database} FROM flowstone_tenant",
            "SELECT WHERE NOT has_database_privilege('flowstone_tenant', current_database(), 'CONNECT')",
        ),
        (NOTHING,),
    ),
    *after(
        "role",
        {
            "its group": ("SET ROLE flowstone_tenant",),
            "reset": ("RESET ROLE", "RESET SESSION AUTHORIZATION"),
            "none": ("SET ROLE NONE",),
        },
        _FOREIGN,
    ),
)

SETTINGS: tuple[Attack, ...] = (
    *after(
        "setting",
        {
            "app": ("SET app.tenant_id = {victim}", "SET app.current_tenant = {victim}"),
            "flowstone": ("SET flowstone.tenant = {victim}", "SET flowstone.tenant_id = {victim}"),
            "context": ("SET flowstone.context = {forged}",),
            "local": ("SET LOCAL flowstone.context = {forged}",),
            "function": ("SELECT set_config('flowstone.context', {forged}, false)",),
            "path": ("SET search_path = pg_temp, flowstone, public",),
            "reset": ("RESET ALL",),
            "planner": (
                "SET enable_indexscan = off",
                "SET enable_bitmapscan = off",
                "SET enable_seqscan = off",
                "SET plan_cache_mode = force_generic_plan",
            ),
            "in parallel": (
                "SET max_parallel_workers_per_gather = 4",
                "SET min_parallel_table_scan_size = 0",
                "SET parallel_setup_cost = 0",
                "SET parallel_tuple_cost = 0",
            ),
            "null": ("SET transform_null_equals = on",),
        },
        _FOREIGN,
    ),
    Attack(
        "setting/identity",
        ("SET flowstone.context = {forged}", "SELECT WHERE flowstone.tenant_id() IS DISTINCT FROM {own}"),
        (NOTHING,),
    ),
    Attack(
        "setting/default",
        (
            "SET flowstone.context = {forged}",
            "WITH made AS (INSERT INTO flowstone.canary (id, note) VALUES (8, 'x') RETURNING tenant_id) "
            "SELECT FROM made WHERE tenant_id <> {own}",
        ),
        (NOTHING,),
    ),
    Attack("setting/system", ("COMMIT", "ALTER SYSTEM RESET flowstone.nothing")),
    *refused(
        "setting",
        {
            "database": "ALTER DATABASE {database} SET row_security = off",
            "replica": "SET session_replication_role = replica",
            "log": "SET log_statement = 'all'",
            "preload": "SET session_preload_libraries = 'x'",
            "temporary files": "SET temp_file_limit = -1",
            "system tables": "SET allow_system_table_mods = on",
            "damaged pages": "SET zero_damaged_pages = on",
            "entry for all": "ALTER DATABASE {database} CONNECTION LIMIT 0",
        },
    ),
    *after(
        "cursor",
        {
            "held over": ("DECLARE c CURSOR WITH HOLD FOR " + _FOREIGN, "COMMIT", "SET ROLE flowstone_tenant"),
            "after a switch": ("DECLARE c CURSOR FOR " + _FOREIGN, "SET ROLE flowstone_tenant"),
        },
        "FETCH ALL FROM c",
    ),
    *after(
        "prepared",
        {
            "before a switch": ("PREPARE p AS " + _FOREIGN, "EXECUTE p", "SET ROLE flowstone_tenant"),
            "generic": ("SET plan_cache_mode = force_generic_plan", "PREPARE p AS " + _FOREIGN, "EXECUTE p"),
            "before a forged context": ("PREPARE p AS " + _FOREIGN, "SET flowstone.context = {forged}"),
        },
        "EXECUTE p",
    ),
)

OBJECTS: tuple[Attack, ...] = (
    *refused(
        "object",
        {
            "schema": "CREATE SCHEMA canary_intruder",
            "table in public": "CREATE TABLE public.canary_intruder (x int)",
            "table in the ledger": "CREATE TABLE flowstone.canary_intruder (x int)",
            "function in public": "CREATE FUNCTION public.canary_intruder() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function of the ledger": "CREATE OR REPLACE FUNCTION flowstone.tenant_id() RETURNS text "
            "LANGUAGE sql STABLE AS 'SELECT ''x''::text'",
            "view": "CREATE VIEW public.canary_intruder AS SELECT * FROM flowstone.canary",
            "materialised view": "CREATE MATERIALIZED VIEW public.canary_intruder AS SELECT * FROM flowstone.canary",
            "operator": "CREATE OPERATOR public.=== (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
            "trigger": "CREATE TRIGGER canary_intruder AFTER INSERT ON flowstone.canary "
            "EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            "trigger on the ledger": "CREATE TRIGGER canary_intruder AFTER UPDATE ON flowstone.materialization "
            "EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
            "event trigger": "CREATE EVENT TRIGGER canary_intruder ON ddl_command_start "
            "EXECUTE FUNCTION flowstone.record_latest()",
            "rule": "CREATE RULE canary_intruder AS ON INSERT TO flowstone.canary DO ALSO NOTHING",
            "index": "CREATE INDEX canary_intruder ON flowstone.canary (note)",
            "statistics": "CREATE STATISTICS flowstone.canary_intruder ON id, note FROM flowstone.canary",
            "default": "ALTER TABLE flowstone.canary ALTER COLUMN tenant_id SET DEFAULT 'x'",
            "policy": "CREATE POLICY canary_intruder ON flowstone.canary USING (true)",
            "drop policy": "DROP POLICY tenant_rows ON flowstone.canary",
            "alter policy": "ALTER POLICY tenant_rows ON flowstone.canary USING (true)",
            "disable": "ALTER TABLE flowstone.canary DISABLE ROW LEVEL SECURITY",
            "no force": "ALTER TABLE flowstone.canary NO FORCE ROW LEVEL SECURITY",
            "own": "ALTER TABLE flowstone.canary OWNER TO CURRENT_USER",
            "drop": "DROP TABLE flowstone.canary CASCADE",
            "comment": "COMMENT ON TABLE flowstone.canary IS 'x'",
            "publication": "CREATE PUBLICATION canary_intruder FOR TABLE flowstone.canary",
            "cast": "CREATE CAST (text AS integer) WITH FUNCTION pg_catalog.length(text) AS IMPLICIT",
            "wrapper": "CREATE FOREIGN DATA WRAPPER canary_intruder",
            "language": "CREATE LANGUAGE canary_intruder HANDLER plpgsql_call_handler",
            "domain": "CREATE DOMAIN public.canary_intruder AS text",
            "collation": 'CREATE COLLATION public.canary_intruder FROM "C"',
            "conversion": "CREATE CONVERSION public.canary_intruder FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
            "access method": "CREATE ACCESS METHOD canary_intruder TYPE TABLE HANDLER heap_tableam_handler",
            "aggregate": "CREATE AGGREGATE public.canary_intruder (int) (SFUNC = int4pl, STYPE = int)",
            "type": "CREATE TYPE public.canary_intruder AS (x int)",
            "range": "CREATE TYPE public.canary_intruder AS RANGE (SUBTYPE = int)",
            "procedure": "CREATE PROCEDURE public.canary_intruder() LANGUAGE sql AS ''",
            "operator class": "CREATE OPERATOR CLASS public.canary_intruder FOR TYPE int USING btree AS STORAGE int",
            "text search": "CREATE TEXT SEARCH CONFIGURATION public.canary_intruder (COPY = simple)",
            "subscription": "CREATE SUBSCRIPTION canary_intruder CONNECTION 'host=/nowhere' PUBLICATION x "
            "WITH (connect = false)",
            "rename": "ALTER TABLE flowstone.canary RENAME TO canary_intruder",
            "cluster": "CLUSTER flowstone.canary USING canary_pkey",
            "reindex": "REINDEX TABLE flowstone.canary",
            "run as operator": "ALTER DEFAULT PRIVILEGES FOR ROLE flowstone_owner GRANT SELECT ON TABLES TO PUBLIC",
        },
    ),
    Attack("object/database", ("COMMIT", "CREATE DATABASE template0")),
    Attack("object/tablespace", ("COMMIT", "CREATE TABLESPACE pg_canary LOCATION '/nowhere'")),
    *(
        Attack(f"object/extension {name}", (f"CREATE EXTENSION {name}",), (REFUSED, "0A000", "58P01", "22023"))
        for name in ("dblink", "postgres_fdw", "file_fdw", "adminpack", "plpython3u", "pageinspect", "pg_trgm")
    ),
    *(
        Attack(
            f"object/{name}",
            (
                grant,
                "SELECT FROM pg_class c, aclexplode(c.relacl) x WHERE c.oid = 'flowstone.canary'::regclass "
                "AND x.grantee = 0",
            ),
            (REFUSED, NOTHING),
        )
        for name, grant in (
            ("grant to all", "GRANT SELECT ON flowstone.canary TO PUBLIC"),
            ("grant a column to all", "GRANT SELECT (note) ON flowstone.canary TO PUBLIC"),
        )
    ),
    Attack("object/temporary table", ("CREATE TEMPORARY TABLE t (x int)",), hardening=DATABASE),
    Attack(
        "object/temporary function",
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",),
        hardening=DATABASE,
    ),
    *after(
        "object",
        {
            "temporary login table": (_LOGIN_TABLE, "SET search_path = pg_temp, flowstone"),
            "temporary table of the name": (
                "CREATE TEMPORARY TABLE canary (tenant_id text)",
                "SET search_path = pg_temp, flowstone",
            ),
            "temporary child": ("CREATE TEMPORARY TABLE child () INHERITS (flowstone.canary)",),
            "temporary view": ("CREATE TEMPORARY VIEW v AS SELECT * FROM flowstone.canary",),
        },
        _FOREIGN,
        REFUSED,
        NOTHING,
        "42P16",
    ),
)

FUNCTION_CALLS: tuple[Attack, ...] = (
    *refused(
        "function",
        {
            "context": "SELECT flowstone.context_scope()",
            "context of a tenant": "SELECT flowstone.context_tenant()",
            "signed": "SELECT flowstone.context_signed()",
            "enter": "SELECT flowstone.enter_tenant({forged})",
            "restore": "SELECT flowstone.restore_protection('flowstone.canary')",
            "record": "SELECT flowstone.record_latest()",
            "read a file": "SELECT pg_read_file('PG_VERSION')",
            "read bytes": "SELECT pg_read_binary_file('PG_VERSION')",
            "list files": "SELECT pg_ls_dir('.')",
            "list logs": "SELECT pg_ls_logdir()",
            "file's size": "SELECT pg_stat_file('PG_VERSION')",
            "end a session": "SELECT pg_terminate_backend({victim_pid})",
            "cancel a statement": "SELECT pg_cancel_backend({victim_pid})",
            "reload": "SELECT pg_reload_conf()",
            "rotate the log": "SELECT pg_rotate_logfile()",
            "switch the log": "SELECT pg_switch_wal()",
            "reset statistics": "SELECT pg_stat_reset_single_table_counters(0::oid)",
            "replication slot": "SELECT pg_create_physical_replication_slot('No slot!')",
            "logical slot": "SELECT pg_create_logical_replication_slot('No slot!', 'pgoutput')",
            "replication origin": "SELECT pg_replication_origin_create('canary_intruder')",
            "draw a fence": "SELECT nextval('flowstone.batch_fence_seq')",
            "last fence": "SELECT last_value FROM flowstone.batch_fence_seq",
            "copy to a file": "COPY flowstone.canary TO '/nowhere/canary'",
            "copy from a file": "COPY flowstone.canary FROM '/etc/passwd'",
            "copy to a program": "COPY flowstone.canary TO PROGRAM 'cat'",
            "load": "LOAD 'plpgsql_intruder'",
            "checkpoint": "CHECKPOINT",
            "cancel a statement of the operator": "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE usename = 'flowstone_operator'",
            "list write-ahead logs": "SELECT pg_ls_waldir()",
            "list temporary files": "SELECT pg_ls_tmpdir()",
            "temporary slot": "SELECT pg_create_logical_replication_slot('No slot!', 'pgoutput', true)",
            "peek into a slot": "SELECT pg_logical_slot_peek_changes('no_slot', NULL, NULL)",
            "drop a slot": "SELECT pg_drop_replication_slot('no_slot')",
            "restore point": "SELECT pg_create_restore_point('canary')",
            "backup": "SELECT pg_backup_start('canary')",
            "reset all statistics": "SELECT pg_stat_reset()",
            "memory of the victim": "SELECT pg_log_backend_memory_contexts({victim_pid})",
            "collations": "SELECT pg_import_system_collations('pg_catalog')",
            "host rules": "SELECT pg_hba_file_rules()",
            "shared memory": "SELECT FROM pg_catalog.pg_shmem_allocations",
        },
    ),
    *refused(
        "reach",
        {
            "lock": "SELECT pg_advisory_lock(724639150)",
            "try a lock": "SELECT pg_try_advisory_lock(724639150)",
            "shared lock": "SELECT pg_advisory_xact_lock_shared(724639, 150)",
            "notify": "SELECT pg_notify('canary', 'x')",
            "large object": "SELECT lo_create(0)",
            "large object of bytes": "SELECT lo_from_bytea(0, 'x')",
            "read a large object": "SELECT lo_get(1)",
            "write a large object": "SELECT lo_put(1, 0, 'x')",
            "open a large object": "SELECT lo_open(1, 131072)",
            "unlock": "SELECT pg_advisory_unlock_all()",
            "send to replicas": "SELECT pg_logical_emit_message(true, 'canary', 'x')",
            "versions of a row": "SELECT currtid2('flowstone.canary', '(0,1)'::tid)",
        },
        hardening=FUNCTIONS,
    ),
    *refused("reach", {"import": "SELECT lo_import('/etc/passwd')", "export": "SELECT lo_export(1, '/nowhere/x')"}),
)
