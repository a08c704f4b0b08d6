# ruff: noqa: S608 - all SQL of this module is put together from its own constants
"""Checks of rights, roles, functions, and of the way from a login to its tenant. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flowstone.tenant.linter import Check, values
from flowstone.tenant.wanted import FUNCTIONS, LEDGER_GRANTS


def _ledger_grants() -> Iterator[tuple[object, ...]]:
    """Yield one row per column, as the catalogue has them."""
    for one in LEDGER_GRANTS:
        for column in one.columns or (None,):
            yield one.table, column, one.role, one.privilege


_WHO = "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END"

_LEDGER_RIGHTS = f"""
, wanted_right (relname, column_name, role, privilege) AS ({values(_ledger_grants())}),
found_right AS (
    SELECT l.relname::text, a.column_name::text, {_WHO} AS role, a.privilege
    FROM relation l JOIN right_of a ON a.relid = l.oid WHERE l.nspname = 'flowstone' AND l.relname <> 'canary'
)
"""

_FUNCTIONS = f"""
, wanted_function (signature, digest, definer, roles) AS (
    {values((one.signature, one.digest, one.definer, one.roles) for one in FUNCTIONS)}
),
found_function AS (
    SELECT p.oid::regprocedure::text, encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex'), p.prosecdef,
           coalesce((SELECT string_agg({_WHO}, ',' ORDER BY {_WHO} COLLATE "C")
            FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            WHERE a.grantee NOT IN (p.proowner, 'flowstone_operator'::regrole)), '')
    FROM pg_proc p WHERE p.pronamespace = 'flowstone'::regnamespace
)
"""

RIGHT_CHECKS: tuple[Check, ...] = (
    Check(
        "tenants have a right on a table that they must not have",
        f"""
        SELECT DISTINCT
            t.label || ': ' || a.privilege || coalesce(' (' || a.column_name || ')', '') || ' TO ' || {_WHO}, t.oid
        FROM tenant_table t JOIN right_of a ON a.relid = t.oid
        WHERE a.grantable OR a.privilege NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
           OR (a.privilege = 'UPDATE' AND (a.attnum IS NULL OR a.attnum = t.tenant))
           OR a.grantee NOT IN (SELECT g.oid FROM team g WHERE g.rolname IN ('flowstone_tenant', 'flowstone_pool'))
        """,
        "REVOKE it; columns but tenant_id may be updated, and nobody but the two groups has rights",
        restorable=True,
    ),
    Check(
        "a right on the ledger is not as it was made",
        f"""
        {_LEDGER_RIGHTS}
        SELECT 'too much: ' || e.relname || ': ' || e.privilege || coalesce(' (' || e.column_name || ')', '')
               || ' TO ' || e.role, to_regclass(format('flowstone.%I', e.relname))::oid
        FROM (SELECT * FROM found_right EXCEPT SELECT * FROM wanted_right) e
        UNION ALL
        SELECT 'not there: ' || e.relname || ': ' || e.privilege || coalesce(' (' || e.column_name || ')', '')
               || ' TO ' || e.role, to_regclass(format('flowstone.%I', e.relname))::oid
        FROM (SELECT * FROM wanted_right EXCEPT SELECT * FROM found_right) e
        UNION ALL
        SELECT DISTINCT 'may be passed on: ' || l.relname || ': ' || a.privilege || ' TO ' || {_WHO}, l.oid
        FROM relation l JOIN right_of a ON a.relid = l.oid WHERE l.nspname = 'flowstone' AND a.grantable
        """,
        "GRANT or REVOKE it as the migration does",
        restorable=True,
    ),
    Check(
        "a table or function belongs to somebody it must not",
        """
        SELECT t.label, NULL::oid FROM tenant_table t WHERE t.relowner IN (SELECT r.oid FROM reached r)
        UNION ALL
        SELECT r.label, NULL::oid FROM relation r
        WHERE r.nspname = 'flowstone' AND r.relkind <> 'S' AND r.relowner <> 'flowstone_owner'::regrole
        UNION ALL
        SELECT p.oid::regprocedure::text, NULL::oid FROM pg_proc p
        WHERE p.pronamespace = 'flowstone'::regnamespace AND p.proowner <> 'flowstone_owner'::regrole
        UNION ALL
        SELECT n.nspname::text, NULL::oid FROM pg_namespace n WHERE NOT n.nspname ^@ 'pg_temp_'
          AND n.nspname !~ '^pg_toast' AND n.nspowner IN (SELECT r.oid FROM reached r WHERE r.oid <> 0)
        """,
        "ALTER ... OWNER TO flowstone_owner; an owner can grant what he owns to everybody",
    ),
    Check(
        "a role that works for tenants has an attribute that opens everything",
        """
        SELECT r.rolname::text, NULL::oid FROM principal p JOIN pg_roles r ON r.oid = p.oid
        WHERE r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication
           OR (r.rolcanlogin AND r.rolname IN ('flowstone_tenant', 'flowstone_apart', 'flowstone_namespace'))
        """,
        "ALTER ROLE ... NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION",
    ),
    Check(
        "a role that works for tenants reaches another role",
        """
        SELECT m.rolname || ' in ' || r.rolname, NULL::oid
        FROM climb c JOIN pg_roles m ON m.oid = c.member JOIN pg_roles r ON r.oid = c.oid
        WHERE c.oid NOT IN (SELECT t.oid FROM team t)
          AND (EXISTS (SELECT FROM climb o JOIN team t ON t.oid = o.oid
                       WHERE o.member = c.member AND t.rolname <> 'flowstone_pool')
               OR c.member IN (SELECT t.oid FROM team t)
               OR c.oid IN (SELECT p.oid FROM principal p)
               OR r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication
               OR r.rolname ^@ 'pg_' OR r.rolname IN ('flowstone_owner', 'flowstone_operator')
               OR EXISTS (SELECT FROM protected t WHERE t.relowner = r.oid))
        UNION ALL
        SELECT m.rolname || ' in ' || string_agg(t.rolname, ' and ' ORDER BY t.rolname), NULL::oid
        FROM climb c JOIN pg_roles m ON m.oid = c.member JOIN team t ON t.oid = c.oid
        GROUP BY m.rolname HAVING count(*) > 1
        UNION ALL
        SELECT m.rolname || ' in ' || t.rolname, NULL::oid
        FROM climb c JOIN team m ON m.oid = c.member JOIN team t ON t.oid = c.oid
        """,
        "REVOKE the membership: a tenant's login is in its group and in nothing else",
    ),
    Check(
        "a login leads to rows that are not its own",
        """
        SELECT s.role_name, NULL::oid FROM flowstone.login_scope s
        LEFT JOIN pg_roles r ON r.rolname = s.role_name
        LEFT JOIN flowstone.tenant t ON t.tenant_id = s.tenant_id
        WHERE r.oid IS DISTINCT FROM s.role_oid OR r.oid IN (
                SELECT c.member FROM climb c JOIN team g ON g.oid = c.oid WHERE g.rolname = 'flowstone_pool')
           OR r.rolname ^@ 'flowstone_' OR r.rolsuper
           OR CASE WHEN s.tenant_id IS NULL THEN NOT s.scope ^@ 'n/'
              ELSE t.scope IS DISTINCT FROM s.scope OR t.role_base IS NULL
                   OR s.role_name NOT IN (t.role_base || '_a', t.role_base || '_b') END
        """,
        "delete its row of flowstone.login_scope; the operator makes the right one again",
    ),
    Check(
        "a login of the tenants' group is no tenant's",
        """
        SELECT r.rolname || ' in ' || g.rolname, NULL::oid
        FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
        WHERE r.rolcanlogin AND g.rolname IN ('flowstone_tenant', 'flowstone_apart', 'flowstone_namespace')
          AND r.rolname <> 'flowstone_operator'
          AND NOT EXISTS (SELECT FROM flowstone.login_scope s WHERE s.role_oid = r.oid)
        """,
        "ALTER ROLE ... NOLOGIN, or DROP it: nobody changes its password, limits it or ends its sessions",
    ),
    Check(
        "tenants have a right on a sequence",
        f"""
        SELECT DISTINCT r.label || ': ' || a.privilege || ' TO ' || {_WHO}, NULL::oid
        FROM relation r JOIN right_of a ON a.relid = r.oid
        WHERE r.relkind = 'S' AND NOT r.own AND a.grantee IN (SELECT s.oid FROM served s)
        """,
        "REVOKE it and make the column an identity column: a sequence counts all tenants' rows",
    ),
    Check(
        "a function gives away its owner's rights",
        """
        SELECT p.oid::regprocedure::text, NULL::oid FROM pg_proc p
        JOIN place n ON n.oid = p.pronamespace JOIN pg_roles o ON o.oid = p.proowner
        WHERE p.prosecdef AND NOT n.own
          AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
                      WHERE x.grantee IN (SELECT s.oid FROM served s))
          AND (o.rolcanlogin OR o.rolsuper OR o.rolbypassrls
               OR NOT EXISTS (SELECT FROM unnest(p.proconfig) c (word) WHERE c.word ~ '^search_path=.*pg_temp"?$'))
        """,
        "REVOKE EXECUTE FROM PUBLIC; or give it to flowstone_owner and SET search_path = pg_catalog, pg_temp",
    ),
    Check(
        "a function of the ledger is not as it was made",
        f"""
        {_FUNCTIONS}
        SELECT coalesce(w.signature, f.signature), NULL::oid
        FROM (SELECT * FROM wanted_function EXCEPT SELECT * FROM found_function) w
        FULL JOIN (SELECT * FROM found_function EXCEPT SELECT * FROM wanted_function)
            f (signature, digest, definer, roles) ON f.signature = w.signature
        """,
        "find out who changed it, and restore it from the migration",
    ),
    Check(
        "a function may look at rows before row security does",
        """
        SELECT p.oid::regprocedure::text, NULL::oid FROM pg_proc p JOIN place n ON n.oid = p.pronamespace
        WHERE p.proleakproof
        """,
        "ALTER FUNCTION ... NOT LEAKPROOF",
    ),
    Check(
        "tenants may make objects where others look for them",
        """
        SELECT 'schema ' || n.nspname || ' TO ' || CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE g.rolname END, NULL::oid
        FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) x LEFT JOIN pg_roles g ON g.oid = x.grantee
        LEFT JOIN flowstone.tenant t ON t.role_base = n.nspname
        WHERE x.privilege_type = 'CREATE' AND x.grantee IN (SELECT s.oid FROM served s) AND NOT n.nspname ^@ 'pg_temp_'
          AND NOT n.nspname ^@ 'pg_toast'
          AND (t.role_base IS NULL OR g.rolname IS NULL OR g.rolname NOT IN (t.role_base || '_a', t.role_base || '_b'))
        UNION ALL
        SELECT 'schema ' || t.role_base || ' TO ' || CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE g.rolname END, NULL::oid
        FROM flowstone.tenant t JOIN pg_namespace n ON n.nspname = t.role_base CROSS JOIN aclexplode(n.nspacl) x
        LEFT JOIN pg_roles g ON g.oid = x.grantee
        WHERE x.privilege_type = 'USAGE'
          AND coalesce(g.rolname, '') NOT IN ('flowstone_operator', t.role_base || '_a', t.role_base || '_b')
        UNION ALL
        SELECT 'database: ' || x.privilege_type || ' TO ' || pg_get_userbyid(x.grantee), NULL::oid
        FROM pg_database d, aclexplode(d.datacl) x
        WHERE d.datname = current_database() AND x.grantee <> 0 AND x.privilege_type <> 'CONNECT'
          AND x.grantee IN (SELECT s.oid FROM served s)
        """,
        "REVOKE it; a tenant of isolation Schema makes what it likes in its own schema alone",
    ),
    Check(
        "what is made later would be open to tenants",
        f"""
        SELECT coalesce(n.nspname || ': ', '') || a.privilege_type || ' TO ' || {_WHO}, NULL::oid
        FROM pg_default_acl d CROSS JOIN aclexplode(d.defaclacl) a LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
        WHERE d.defaclobjtype IN ('r', 'S') AND a.grantee IN (SELECT s.oid FROM served s) AND a.grantee <> d.defaclrole
          AND coalesce(d.defaclnamespace, 0) NOT IN (SELECT o.oid FROM own_schema o)
          AND d.defaclrole NOT IN (SELECT p.oid FROM principal p)
        """,
        "ALTER DEFAULT PRIVILEGES ... REVOKE; op.tenant_table grants what each table needs",
    ),
    Check(
        "tenants may change a setting of the server, or use a foreign one",
        f"""
        SELECT p.parname || ': ' || a.privilege_type || ' TO ' || {_WHO}, NULL::oid
        FROM pg_parameter_acl p, aclexplode(p.paracl) a WHERE a.grantee IN (SELECT r.oid FROM reached r)
        UNION ALL
        SELECT s.srvname || ': ' || a.privilege_type || ' TO ' || {_WHO}, NULL::oid
        FROM pg_foreign_server s, aclexplode(s.srvacl) a WHERE a.grantee IN (SELECT r.oid FROM reached r)
        UNION ALL
        SELECT w.fdwname || ': ' || a.privilege_type || ' TO ' || {_WHO}, NULL::oid
        FROM pg_foreign_data_wrapper w, aclexplode(w.fdwacl) a WHERE a.grantee IN (SELECT r.oid FROM reached r)
        """,
        "REVOKE it",
    ),
)
"""What is asked of rights and roles."""
