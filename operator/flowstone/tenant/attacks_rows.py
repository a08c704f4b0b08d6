"""Attacks on rows: reading, writing, keys, and what tells of rows without showing them. Pure."""

from __future__ import annotations

from flowstone.tenant.attack import NOTHING, REFUSED, Attack, nothing, refused

CONTROLS: tuple[Attack, ...] = (
    Attack("control/reads its own", ("SELECT FROM flowstone.canary WHERE tenant_id = {own}",), ("2 rows",)),
    Attack("control/changes its own", ("UPDATE flowstone.canary SET note = note || '!' WHERE id = 1",), ("1 rows",)),
    Attack("control/deletes its own", ("DELETE FROM flowstone.canary WHERE id = 2",), ("1 rows",)),
    Attack(
        "control/makes its own",
        (
            "WITH made AS (INSERT INTO flowstone.canary (id, note) VALUES (3, 'x') RETURNING tenant_id) "
            "SELECT FROM made WHERE tenant_id = {own}",
        ),
        ("1 rows",),
    ),
    Attack("control/reads its batch", ("SELECT FROM flowstone.batch WHERE fence = {own_fence}",), ("1 rows",)),
    Attack(
        "control/reports its partition",
        ("UPDATE flowstone.materialization SET state = 'failed', error = 'x' WHERE fence = {own_fence}",),
        ("1 rows",),
    ),
)
"""What a tenant must be able to do; where it cannot, nothing below proves anything."""

READS: tuple[Attack, ...] = (
    *nothing(
        "read",
        {
            "by tenant": "SELECT FROM flowstone.canary WHERE tenant_id = {victim}",
            "all": "SELECT FROM flowstone.canary WHERE tenant_id IS DISTINCT FROM {own}",
            "by value": "SELECT FROM flowstone.canary WHERE note = {secret}",
            "by position": "SELECT FROM flowstone.canary WHERE ctid = ANY "
            "(ARRAY(SELECT format('(0,%s)', n)::tid FROM generate_series(1, 200) n)) AND tenant_id <> {own}",
            "sample": "SELECT FROM flowstone.canary TABLESAMPLE SYSTEM (100) WHERE tenant_id <> {own}",
            "only": "SELECT FROM ONLY flowstone.canary WHERE tenant_id <> {own}",
            "join": "SELECT FROM flowstone.canary a JOIN flowstone.canary b ON a.tenant_id <> b.tenant_id",
            "count": "SELECT count(*) FROM flowstone.canary WHERE tenant_id = {victim} HAVING count(*) > 0",
            "whole rows": "SELECT c::text FROM flowstone.canary c WHERE c.tenant_id <> {own}",
            "window": "SELECT FROM (SELECT count(*) OVER () AS n FROM flowstone.canary) w WHERE n > 2",
            "groups": "SELECT tenant_id FROM flowstone.canary GROUP BY CUBE (tenant_id) HAVING count(*) > 2",
            "ends of an index": "SELECT FROM (SELECT min(tenant_id) AS a, max(tenant_id) AS z FROM flowstone.canary) e "
            "WHERE a <> z",
            "range of positions": "SELECT FROM flowstone.canary WHERE ctid BETWEEN '(0,0)' AND '(200,0)' "
            "AND tenant_id <> {own}",
            "skip locked": "SELECT FROM flowstone.canary WHERE tenant_id <> {own} FOR NO KEY UPDATE SKIP LOCKED",
            "share partitions": "SELECT FROM flowstone.materialization WHERE scope <> {own_scope} "
            "LIMIT 1 FOR KEY SHARE",
            "lateral": "SELECT FROM (VALUES (1)) v CROSS JOIN LATERAL "
            "(SELECT FROM flowstone.canary WHERE tenant_id <> {own}) c",
            "recursive": "WITH RECURSIVE r (t) AS (SELECT tenant_id FROM flowstone.canary UNION "
            "SELECT c.tenant_id FROM flowstone.canary c, r) SELECT FROM r WHERE t <> {own}",
            "for update": "SELECT FROM flowstone.canary WHERE tenant_id <> {own} FOR UPDATE",
            "for key share": "SELECT FROM flowstone.canary WHERE tenant_id <> {own} FOR KEY SHARE",
            "partitions": "SELECT FROM flowstone.materialization WHERE scope <> {own_scope} LIMIT 1",
            "partitions of a fence": "SELECT FROM flowstone.materialization WHERE fence = {victim_fence}",
            "lock partitions": "SELECT FROM flowstone.materialization WHERE scope <> {own_scope} "
            "LIMIT 1 FOR UPDATE SKIP LOCKED",
            "batches": "SELECT FROM flowstone.batch WHERE scope <> {own_scope} LIMIT 1",
            "lock batches": "SELECT FROM flowstone.batch WHERE scope <> {own_scope} LIMIT 1 FOR UPDATE SKIP LOCKED",
            "logins": "SELECT role_name, scope, tenant_id FROM flowstone.login_scope WHERE role_name <> session_user",
            "copy out": "COPY (SELECT 1 FROM flowstone.canary WHERE tenant_id <> {own}) TO STDOUT",
            "copy of the ledger": "COPY (SELECT 1 FROM flowstone.materialization WHERE scope <> {own_scope} "
            "LIMIT 1) TO STDOUT",
            "statistics": "SELECT FROM pg_catalog.pg_stats WHERE schemaname = 'flowstone' "
            "AND tablename IN ('canary', 'materialization', 'batch')",
            "extended statistics": "SELECT FROM pg_catalog.pg_stats_ext WHERE schemaname = 'flowstone'",
            "progress of others": "SELECT FROM pg_catalog.pg_stat_get_progress_info('ANALYZE') WHERE relid IS NOT NULL",
            "address by backend": "SELECT FROM pg_catalog.pg_stat_get_backend_idset() i "
            "WHERE pg_stat_get_backend_pid(i) = {victim_pid} AND pg_stat_get_backend_client_addr(i) IS NOT NULL",
            "text search": "SELECT FROM pg_catalog.ts_stat("
            "'SELECT to_tsvector(''simple'', note) FROM flowstone.canary') WHERE word ^@ 'victim'",
            "words of others": "SELECT FROM pg_catalog.pg_stat_activity WHERE usename = {victim_role} "
            "AND query <> '<insufficient privilege>'",
            "addresses of others": "SELECT FROM pg_catalog.pg_stat_activity WHERE usename = {victim_role} "
            "AND (client_addr IS NOT NULL OR client_port IS NOT NULL)",
        },
    ),
    Attack("read/copy whole", ("COPY flowstone.canary TO STDOUT",), ("2 rows",)),
    Attack(
        "read/xml",
        (
            "SELECT FROM pg_catalog.query_to_xml('SELECT note FROM flowstone.canary', true, true, '') AS x "
            "WHERE x::text LIKE '%victim%'",
        ),
        (NOTHING, "0A000"),  # not every server is built with XML
    ),
    *refused(
        "read",
        {
            "registry": "SELECT FROM flowstone.tenant LIMIT 1",
            "backfills": "SELECT FROM flowstone.backfill LIMIT 1",
            "attempts": "SELECT FROM flowstone.attempt LIMIT 1",
            "latest": "SELECT FROM flowstone.latest LIMIT 1",
            "context keys": "SELECT FROM flowstone.context_key",
            "last proof": "SELECT FROM flowstone.proof",
            "all of a login": "SELECT * FROM flowstone.login_scope",
            "number of a login": "SELECT role_oid FROM flowstone.login_scope",
            "passwords": "SELECT rolpassword FROM pg_catalog.pg_authid",
            "passwords by the old name": "SELECT passwd FROM pg_catalog.pg_shadow",
            "raw statistics": "SELECT FROM pg_catalog.pg_statistic",
            "raw extended statistics": "SELECT FROM pg_catalog.pg_statistic_ext_data",
            "large objects": "SELECT FROM pg_catalog.pg_largeobject",
            "subscriptions": "SELECT subconninfo FROM pg_catalog.pg_subscription",
            "host rules": "SELECT FROM pg_catalog.pg_hba_file_rules",
            "settings files": "SELECT FROM pg_catalog.pg_file_settings",
            "user mappings": "SELECT umoptions FROM pg_catalog.pg_user_mapping",
        },
    ),
    Attack("read/row security off", ("SET LOCAL row_security = off", "SELECT FROM flowstone.canary"), (REFUSED,)),
)

# A condition that fails on a row tells of it, if it is evaluated before row security is.
ORACLES: tuple[Attack, ...] = (
    *nothing(
        "oracle",
        {
            "cast": "SELECT FROM flowstone.canary WHERE tenant_id = {victim} AND note::integer = 1",
            "division": "SELECT FROM flowstone.canary WHERE tenant_id = {victim} AND 1 / (id - id) = 1",
            "pattern": "SELECT FROM flowstone.canary WHERE tenant_id = {victim} AND note ~ ('(' || note)",
            "scope": "SELECT FROM flowstone.materialization WHERE scope = {victim_scope} AND partition::integer = 1",
            "case": "SELECT FROM flowstone.canary "
            "WHERE CASE WHEN tenant_id = {victim} THEN 1 / (id - id) = 1 ELSE false END",
            "document": "SELECT FROM flowstone.canary WHERE tenant_id = {victim} AND note::jsonb @? '$'",
            "time": "SELECT pg_sleep(6) FROM flowstone.canary WHERE tenant_id = {victim}",
        },
    ),
    Attack(
        "oracle/over all",
        ("SELECT FROM flowstone.canary WHERE 1 / (tenant_id <> {victim})::integer = 1",),
        ("2 rows",),
    ),
    Attack(
        "oracle/function of its own",
        (
            "CREATE FUNCTION pg_temp.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
            "'BEGIN IF $1 ^@ ''victim'' THEN RAISE EXCEPTION SQLSTATE ''ZZZZZ''; END IF; RETURN true; END'",
            "SELECT FROM flowstone.canary WHERE pg_temp.tell(note) AND tenant_id <> {own}",
        ),
        (REFUSED, NOTHING),
    ),
    Attack(
        "oracle/unique",
        ("WITH made AS (INSERT INTO flowstone.canary (id, note) VALUES (4, {secret}) RETURNING 1) SELECT FROM made",),
        ("1 rows",),  # another tenant's value does not stand in the way
    ),
    Attack(
        "oracle/primary key",
        ("INSERT INTO flowstone.canary (id, note) VALUES ({victim_id}, 'x')",),
        ("1 rows",),
    ),
    Attack(
        "oracle/foreign key",
        ("INSERT INTO flowstone.canary (id, parent, note) VALUES (5, {victim_id}, 'x')",),
        ("23503",),  # another tenant's row is no parent
    ),
    Attack(
        "oracle/conflict",
        (
            "INSERT INTO flowstone.canary (tenant_id, id, note) VALUES ({victim}, {victim_id}, 'x') "
            "ON CONFLICT DO NOTHING",
        ),
    ),
)

WRITES: tuple[Attack, ...] = (
    *nothing(
        "write",
        {
            "update": "UPDATE flowstone.canary SET note = 'mine' WHERE tenant_id = {victim}",
            "update without where": "UPDATE flowstone.canary c SET note = c.note WHERE c.tenant_id <> {own}",
            "update from": "UPDATE flowstone.canary c SET note = 'x' FROM flowstone.canary v "
            "WHERE v.tenant_id = {victim} AND c.id = v.id",
            "delete": "DELETE FROM flowstone.canary WHERE tenant_id = {victim}",
            "delete using": "DELETE FROM flowstone.canary c USING flowstone.canary v WHERE v.tenant_id = {victim}",
            "merge": "MERGE INTO flowstone.canary c USING (VALUES ({victim})) v (t) ON c.tenant_id = v.t "
            "WHEN MATCHED THEN DELETE",
            "merge update": "MERGE INTO flowstone.canary c USING (VALUES ({victim})) v (t) ON c.tenant_id = v.t "
            "WHEN MATCHED THEN UPDATE SET note = 'mine'",
            "report a partition": "UPDATE flowstone.materialization SET state = 'succeeded' "
            "WHERE scope = {victim_scope}",
            "report a fence": "UPDATE flowstone.materialization SET state = 'failed' WHERE fence = {victim_fence}",
            "report a batch": "UPDATE flowstone.batch SET reporting = true WHERE fence = {victim_fence}",
        },
    ),
    *refused(
        "write",
        {
            "insert": "INSERT INTO flowstone.canary (tenant_id, id, note) VALUES ({victim}, 6, 'x')",
            "insert select": "INSERT INTO flowstone.canary (tenant_id, id, note) "
            "SELECT {victim}, id + 10, note || '?' FROM flowstone.canary",
            "upsert": "INSERT INTO flowstone.canary (tenant_id, id, note) VALUES ({victim}, {victim_id}, 'x') "
            "ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'mine'",
            "give away": "UPDATE flowstone.canary SET tenant_id = {victim}",
            "merge insert": "MERGE INTO flowstone.canary c USING (VALUES ({victim})) v (t) ON c.tenant_id = v.t "
            "WHEN NOT MATCHED THEN INSERT (tenant_id, id, note) VALUES (v.t, 7, 'x')",
            "give back": "UPDATE flowstone.canary SET tenant_id = DEFAULT",
            "take a fence": "INSERT INTO flowstone.batch "
            "(fence, backfill, scope, job_name, template_digest, partitions) "
            "VALUES ({victim_fence}, gen_random_uuid(), {own_scope}, 'x', 'x', 1)",
            "truncate": "TRUNCATE flowstone.canary",
            "make a partition": "INSERT INTO flowstone.materialization (scope, asset, partition, backfill, ordinal) "
            "VALUES ({victim_scope}, 'a', 'p', gen_random_uuid(), 0)",
            "move a partition": "UPDATE flowstone.materialization SET scope = {victim_scope} WHERE fence = {own_fence}",
            "steal a fence": "UPDATE flowstone.materialization SET fence = {victim_fence} WHERE fence = {own_fence}",
            "queue again": "UPDATE flowstone.materialization SET state = 'queued' WHERE fence = {own_fence}",
            "skip a partition": "UPDATE flowstone.materialization SET state = 'skipped' WHERE fence = {own_fence}",
            "delete partitions": "DELETE FROM flowstone.materialization WHERE scope = {victim_scope}",
            "close a batch": "UPDATE flowstone.batch SET state = 'closed' WHERE fence = {victim_fence}",
            "delete batches": "DELETE FROM flowstone.batch WHERE fence = {victim_fence}",
            "move its login": "UPDATE flowstone.login_scope SET tenant_id = {victim} WHERE role_name = session_user",
            "add a login": "INSERT INTO flowstone.login_scope (role_name, role_oid, scope, slot) "
            "VALUES (session_user, 1, {victim_scope}, 'b')",
            "forget its login": "DELETE FROM flowstone.login_scope WHERE role_name = session_user",
            "raise its tier": "UPDATE flowstone.tenant SET tier = 'enterprise' WHERE tenant_id = {own}",
            "success record": "INSERT INTO flowstone.latest (scope, asset, partition, succeeded_at, backfill, fence) "
            "VALUES ({victim_scope}, 'a', 'p', now(), gen_random_uuid(), 1)",
            "attempt": "DELETE FROM flowstone.attempt WHERE scope = {victim_scope}",
            "version": "UPDATE flowstone.compatibility SET min_operator = 9999 WHERE false",
            "limits": "UPDATE flowstone.cluster_limit SET cluster = cluster WHERE false",
            "key": "INSERT INTO flowstone.context_key VALUES (1, repeat('x', 64)::bytea, repeat('x', 64)::bytea)",
            "proof": "UPDATE flowstone.proof SET open = '{{}}' WHERE false",
        },
    ),
    Attack(
        "write/where a cursor stands",
        (
            "DECLARE c CURSOR FOR SELECT * FROM flowstone.canary WHERE tenant_id = {victim} FOR UPDATE",
            "FETCH c",
            "UPDATE flowstone.canary SET note = 'x' WHERE CURRENT OF c",
        ),
        ("24000",),
    ),
    Attack("write/copy in", ("COPY flowstone.canary (tenant_id, id, note) FROM STDIN",), ("0A000", REFUSED)),
    *refused(
        "lock",
        {
            "partitions": "LOCK TABLE flowstone.materialization IN ACCESS EXCLUSIVE MODE NOWAIT",
            "partitions in share mode": "LOCK TABLE flowstone.materialization IN SHARE MODE NOWAIT",
            "batches": "LOCK TABLE flowstone.batch IN SHARE ROW EXCLUSIVE MODE NOWAIT",
            "logins": "LOCK TABLE flowstone.login_scope IN ACCESS EXCLUSIVE MODE NOWAIT",
            "registry": "LOCK TABLE flowstone.tenant IN ACCESS SHARE MODE NOWAIT",
            "roles": "LOCK TABLE pg_catalog.pg_authid IN ACCESS SHARE MODE NOWAIT",
            "batches for writing": "LOCK TABLE flowstone.batch IN ROW EXCLUSIVE MODE NOWAIT",
            "successes": "LOCK TABLE flowstone.latest IN ACCESS SHARE MODE NOWAIT",
            "last proof": "LOCK TABLE flowstone.proof IN ACCESS SHARE MODE NOWAIT",
            "catalogue": "LOCK TABLE pg_catalog.pg_class IN ACCESS EXCLUSIVE MODE NOWAIT",
            "databases": "LOCK TABLE pg_catalog.pg_database IN ROW EXCLUSIVE MODE NOWAIT",
        },
    ),
)
