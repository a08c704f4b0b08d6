"""Checks of tables: row security, policies, keys, and what leads around them. Pure."""

from __future__ import annotations

from flowstone.tenant.linter import Check
from flowstone.tenant.protection import LASTING

TABLE_CHECKS: tuple[Check, ...] = (
    Check(
        "row security is off",
        "SELECT t.label, t.oid FROM protected t WHERE NOT t.relrowsecurity",
        "ALTER TABLE ... ENABLE ROW LEVEL SECURITY",
        restorable=True,
    ),
    Check(
        "row security is not forced",
        "SELECT t.label, t.oid FROM protected t WHERE NOT t.relforcerowsecurity",
        "ALTER TABLE ... FORCE ROW LEVEL SECURITY",
        restorable=True,
    ),
    Check(
        "a policy is missing or was changed",
        """
        SELECT t.label || ': ' || w.name, t.oid FROM missing_policy w JOIN protected t ON t.oid = w.oid
        WHERE NOT t.child
        """,
        "make it again as op.tenant_table does",
        restorable=True,
    ),
    Check(
        "a policy lets tenants in that is not ours",
        """
        SELECT t.label || ': ' || e.name, t.oid FROM extra_policy e JOIN protected t ON t.oid = e.oid
        WHERE (t.nspname = 'flowstone' AND t.relname <> 'canary')
           OR (e.permissive AND EXISTS (
                SELECT FROM found_policy f, unnest(f.polroles) u (role)
                WHERE f.oid = e.oid AND f.name = e.name AND u.role IN (SELECT r.oid FROM reached r)))
        """,
        "DROP POLICY; or give it TO a role that no tenant's login is a member of",
        restorable=True,
    ),
    Check(
        "tenant_id may be null or comes from elsewhere",
        """
        SELECT t.label, t.oid FROM tenant_table t
        LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = t.tenant
        LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = t.tenant
        WHERE a.attnum IS NULL OR NOT a.attnotnull
           OR pg_get_expr(d.adbin, d.adrelid) <> 'flowstone.tenant_id()'
        """,
        "ALTER COLUMN tenant_id SET NOT NULL, SET DEFAULT flowstone.tenant_id()",
    ),
    Check(
        "a key or index does not begin with the tenant",
        """
        SELECT t.label || ': ' || c.relname, t.oid
        FROM tenant_table t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indkey[0] IS DISTINCT FROM t.tenant
        UNION ALL
        SELECT l.label || ': ' || c.relname, l.oid
        FROM ledger l JOIN pg_index i ON i.indrelid = l.oid JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_attribute a ON a.attrelid = l.oid AND a.attname = 'scope'
        WHERE (i.indisunique OR i.indisexclusion) AND i.indkey[0] IS DISTINCT FROM a.attnum
          AND l.relname IN ('materialization', 'latest', 'attempt')
        """,
        "drop it and make it with tenant_id as its first column",
    ),
    Check(
        "one tenant can use up the numbers of all",
        f"""
        SELECT DISTINCT t.label || '.' || a.attname, t.oid
        FROM tenant_table t JOIN (
            SELECT d.refobjid, d.refobjsubid, d.objid FROM pg_depend d
            WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
            UNION
            SELECT f.adrelid, f.adnum, d.refobjid FROM pg_attrdef f JOIN pg_depend d ON d.objid = f.oid
            WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
        ) u (relid, attnum, sequence) ON u.relid = t.oid
        JOIN pg_sequence s ON s.seqrelid = u.sequence
        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = u.attnum
        WHERE s.seqcycle OR a.atttypid IN ('smallint'::regtype, 'integer'::regtype)
           OR (CASE WHEN s.seqincrement > 0 THEN s.seqmax::numeric - s.seqstart ELSE s.seqstart::numeric - s.seqmin END)
              / (abs(s.seqincrement::numeric) * s.seqcache) < {LASTING}
        """,  # noqa: S608 - put together from this package's constants
        "ALTER COLUMN ... TYPE bigint, ALTER SEQUENCE ... AS bigint NO MAXVALUE NO CYCLE; or a key that tenants choose",
    ),
    Check(
        "a foreign key reaches over tenants",
        """
        SELECT coalesce(t.label, f.label) || ': ' || k.conname, coalesce(t.oid, f.oid)
        FROM pg_constraint k LEFT JOIN tenant_table t ON t.oid = k.conrelid
        LEFT JOIN tenant_table f ON f.oid = k.confrelid
        WHERE k.contype = 'f' AND (t.oid IS NOT NULL OR f.oid IS NOT NULL)
          AND (k.conkey[1] IS DISTINCT FROM t.tenant OR k.confkey[1] IS DISTINCT FROM f.tenant)
        UNION ALL
        SELECT l.label || ': ' || k.conname, l.oid
        FROM pg_constraint k JOIN ledger l ON l.oid IN (k.conrelid, k.confrelid) WHERE k.contype = 'f'
        """,
        "make it over (tenant_id, ...) on both sides",
    ),
    Check(
        "a view shows tenants' rows with its owner's rights",
        """
        , seen (oid) AS (
            SELECT p.oid FROM protected p
            UNION
            SELECT r.ev_class FROM seen s JOIN pg_depend d ON d.refobjid = s.oid AND d.refclassid = 'pg_class'::regclass
                AND d.classid = 'pg_rewrite'::regclass
            JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
        )
        SELECT v.label, v.oid FROM seen s JOIN relation v ON v.oid = s.oid JOIN pg_class c ON c.oid = v.oid
        WHERE v.relkind = 'v' AND NOT coalesce((
                SELECT lower(o.option_value) IN ('true', 'on', 'yes', '1') FROM pg_options_to_table(c.reloptions) o
                WHERE o.option_name = 'security_invoker'), false)
          AND (EXISTS (SELECT FROM right_of a WHERE a.relid = v.oid) OR v.relowner IN (SELECT r.oid FROM reached r))
          AND NOT (v.own AND v.relowner IN (SELECT p.oid FROM principal p))
        """,
        "ALTER VIEW ... SET (security_invoker = true)",
    ),
    Check(
        "a materialised view holds tenants' rows",
        """
        , seen (oid) AS (
            SELECT p.oid FROM protected p
            UNION
            SELECT r.ev_class FROM seen s JOIN pg_depend d ON d.refobjid = s.oid AND d.refclassid = 'pg_class'::regclass
                AND d.classid = 'pg_rewrite'::regclass
            JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
        )
        SELECT v.label, v.oid FROM seen s JOIN relation v ON v.oid = s.oid
        WHERE v.relkind = 'm' AND NOT (v.own AND v.relowner IN (SELECT p.oid FROM principal p))
        """,
        "drop it: a materialised view has no row security; a table with tenant_id has",
    ),
    Check(
        "a trigger or rule runs what tenants wrote",
        """
        SELECT t.label || ': ' || g.tgname, t.oid FROM protected t JOIN pg_trigger g ON g.tgrelid = t.oid
        JOIN pg_proc f ON f.oid = g.tgfoid
        WHERE NOT g.tgisinternal AND (f.proowner IN (SELECT r.oid FROM reached r)
            OR f.pronamespace IN (SELECT o.oid FROM own_schema o)
            OR (t.nspname = 'flowstone' AND f.oid <> 'flowstone.record_latest()'::regprocedure))
        UNION ALL
        SELECT t.label || ': ' || w.rulename, t.oid FROM protected t JOIN pg_rewrite w ON w.ev_class = t.oid
        """,
        "drop it: whoever writes the table would run it with rights of his own",
    ),
    Check(
        "tenants write a table that is nobody's",
        """
        SELECT DISTINCT r.label, r.oid FROM relation r JOIN right_of a ON a.relid = r.oid
        WHERE NOT r.own AND r.nspname <> 'flowstone' AND r.oid NOT IN (SELECT t.oid FROM tenant_table t)
          AND a.grantee IN (SELECT s.oid FROM served s)
          AND (r.relkind = 'f' OR r.relkind IN ('r', 'p')
               AND a.privilege IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'REFERENCES', 'MAINTAIN'))
        """,
        "make it with op.tenant_table, or let tenants only read it",
    ),
)
"""What is asked of tables."""
