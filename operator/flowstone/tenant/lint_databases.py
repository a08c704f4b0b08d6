# ruff: noqa: S608 - all SQL of this module is put together from its own constants
"""Checks of tenants' own databases, asked from outside; what is in them, each tenant's reconcile looks at. Pure."""

from __future__ import annotations

from flowstone.tenant.linter import Check

_WHO = "CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END"

_OWN = """
, own_database (oid, base, datdba, acl) AS (
    SELECT d.oid, t.role_base, d.datdba, coalesce(d.datacl, acldefault('d', d.datdba))
    FROM flowstone.tenant t JOIN pg_database d ON d.datname = t.role_base WHERE t.isolation = 'Database'
)
"""

DATABASE_CHECKS: tuple[Check, ...] = (
    Check(
        "a tenant's database lets others in",
        f"""
        {_OWN}
        SELECT o.base || ': ' || x.privilege_type || ' TO ' || {_WHO}
               || CASE WHEN x.is_grantable THEN ' and to be passed on' ELSE '' END, NULL::oid
        FROM own_database o CROSS JOIN aclexplode(o.acl) x
        WHERE x.grantee <> o.datdba AND (x.is_grantable OR NOT (
            {_WHO} IN (o.base || '_a', o.base || '_b') AND x.privilege_type IN ('CONNECT', 'TEMPORARY')
            OR {_WHO} = 'flowstone_operator' AND x.privilege_type = 'CONNECT'))
        """,
        "REVOKE it; the operator does so with the tenant's next reconcile",
    ),
    Check(
        "a tenant's database belongs to somebody it must not",
        f"""
        {_OWN}
        SELECT o.base || ' of ' || pg_get_userbyid(o.datdba), NULL::oid FROM own_database o
        WHERE pg_get_userbyid(o.datdba) <> o.base || '_o'
        UNION ALL
        SELECT r.rolname || ' logs in or may do more', NULL::oid FROM own_database o
        JOIN pg_roles r ON r.rolname = o.base || '_o'
        WHERE r.rolcanlogin OR r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication
        UNION ALL
        SELECT pg_get_userbyid(m.member) || ' in ' || r.rolname, NULL::oid FROM own_database o
        JOIN pg_roles r ON r.rolname = o.base || '_o' JOIN pg_auth_members m ON m.roleid = r.oid
        WHERE m.member <> 'flowstone_operator'::regrole
        """,
        "ALTER DATABASE ... OWNER TO its name with _o, which is NOLOGIN and has no member but the operator",
    ),
    Check(
        "a login is in the group of another isolation",
        """
        SELECT s.role_name || ' in ' || g.rolname, NULL::oid FROM flowstone.login_scope s
        JOIN flowstone.tenant t ON t.tenant_id = s.tenant_id JOIN pg_roles r ON r.rolname = s.role_name
        JOIN pg_auth_members m ON m.member = r.oid JOIN pg_roles g ON g.oid = m.roleid
        WHERE g.rolname IN ('flowstone_tenant', 'flowstone_apart')
          AND (g.rolname = 'flowstone_apart') <> (t.isolation = 'Database')
        """,
        "REVOKE it: who has a database of its own has no business in the ledger's",
    ),
    Check(
        "a tenant's login may connect where it has no business",
        f"""
        SELECT d.datname || ' TO ' || {_WHO}, NULL::oid
        FROM pg_database d CROSS JOIN aclexplode(d.datacl) x JOIN pg_roles r ON r.oid = x.grantee
        LEFT JOIN flowstone.login_scope s ON s.role_name = r.rolname
        LEFT JOIN flowstone.tenant t ON t.tenant_id = s.tenant_id
        WHERE x.privilege_type = 'CONNECT' AND (
            r.rolname = 'flowstone_apart'
            OR t.isolation = 'Database' AND d.datname <> t.role_base
            OR s.role_name IS NOT NULL AND t.isolation IS DISTINCT FROM 'Database' AND d.datname <> current_database())
        """,
        "REVOKE CONNECT ON DATABASE ... FROM it",
    ),
)
"""What is asked of tenants' own databases."""
