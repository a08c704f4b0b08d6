"""The catalogue linter: what must be true of a database whose rows are kept apart, as queries that name what is not.

Each check is one query over the system catalogues; no row means that all is well. It asks about every table with
tenants' rows, however it was made, the ledger's tables, and the roles that work for tenants. Nothing here trusts a
comment or an earlier result. Pure: `db.catalogue_linter` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowstone.tenant.wanted import LEDGER, LEDGER_POLICIES, TENANT_POLICIES, WantedPolicy


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must not be found.

    Attributes:
        name: What is wrong when the query returns rows, in a few words.
        query: Returns (what was found, the table's OID or null); it may use the relations of `COMMON`.
        remedy: What to do about it.
        restorable: `flowstone.restore_protection` puts it right on tables of the owner.
    """

    name: str
    query: str
    remedy: str
    restorable: bool = False

    @property
    def sql(self) -> str:
        """The whole statement."""
        return f"{COMMON} {self.query.strip()}"


def literal(value: object) -> str:
    """Return one of this package's constants as SQL."""
    if value is None:
        return "NULL::text"
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + str(value).replace("'", "''") + "'"


def values(rows: Iterable[Iterable[object]]) -> str:
    """Return constants as a list of rows."""
    return "VALUES " + ", ".join(f"({', '.join(map(literal, row))})" for row in rows)


def _policies(wanted: Iterable[WantedPolicy]) -> str:
    return values((one.table, one.name, one.permissive, one.command, one.roles, one.using, one.check) for one in wanted)


# Membership that gives something: administering alone (the operator's, and on 16 a creator's) does not. The columns
# that say so came with PostgreSQL 16, hence the way over jsonb.
_EDGE = """
    m.member <> 'flowstone_operator'::regrole
    AND (coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true)
         OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, true))
"""

COMMON = f"""
WITH RECURSIVE
team (oid, rolname) AS (
    SELECT r.oid, r.rolname FROM pg_roles r
    WHERE r.rolname IN ('flowstone_tenant', 'flowstone_apart', 'flowstone_pool', 'flowstone_namespace')
),
principal (oid) AS (
    SELECT t.oid FROM team t
    UNION
    SELECT m.member FROM principal p JOIN pg_auth_members m ON m.roleid = p.oid WHERE {_EDGE}
),
climb (member, oid) AS (
    SELECT m.member, m.roleid FROM principal p JOIN pg_auth_members m ON m.member = p.oid WHERE {_EDGE}
    UNION
    SELECT c.member, m.roleid FROM climb c JOIN pg_auth_members m ON m.member = c.oid WHERE {_EDGE}
),
reached (oid) AS (
    SELECT p.oid FROM principal p UNION SELECT c.oid FROM climb c UNION SELECT 0::oid
),
tenanted (oid) AS (
    SELECT t.oid FROM team t WHERE t.rolname <> 'flowstone_namespace'
    UNION
    SELECT m.member FROM tenanted p JOIN pg_auth_members m ON m.roleid = p.oid WHERE {_EDGE}
),
served (oid) AS (
    SELECT p.oid FROM tenanted p
    UNION SELECT c.oid FROM climb c WHERE c.member IN (SELECT p.oid FROM tenanted p) UNION SELECT 0::oid
),
own_schema (oid) AS (
    SELECT n.oid FROM pg_namespace n JOIN flowstone.tenant t ON t.role_base = n.nspname
),
place (oid, nspname, own) AS (
    SELECT n.oid, n.nspname, n.oid IN (SELECT o.oid FROM own_schema o) FROM pg_namespace n
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
),
relation AS (
    SELECT c.oid, c.relname, c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relowner, n.nspname, n.own,
           format('%I.%I', n.nspname, c.relname) AS label,
           (SELECT a.attnum FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped) AS tenant
    FROM pg_class c JOIN place n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
),
right_of (relid, column_name, attnum, grantee, privilege, grantable) AS (
    SELECT c.oid, NULL::name, NULL::smallint, x.grantee, x.privilege_type, x.is_grantable
    FROM relation r JOIN pg_class c ON c.oid = r.oid,
         aclexplode(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) x
    WHERE x.grantee IN (SELECT p.oid FROM reached p)
    UNION ALL
    SELECT a.attrelid, a.attname, a.attnum, x.grantee, x.privilege_type, x.is_grantable
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid, aclexplode(a.attacl) x
    WHERE a.attacl IS NOT NULL AND x.grantee IN (SELECT p.oid FROM reached p)
),
marked (oid) AS (
    SELECT r.oid FROM relation r
    WHERE r.relkind IN ('r', 'p') AND r.tenant IS NOT NULL AND NOT r.own
      AND (r.nspname <> 'flowstone' OR r.relname = 'canary')
      AND (r.relname = 'canary' AND r.nspname = 'flowstone'
           OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = r.oid
                      AND p.polname IN ('tenant_rows', 'tenant_floor', 'pool_rows', 'pool_floor'))
           OR EXISTS (SELECT FROM pg_attrdef d WHERE d.adrelid = r.oid AND d.adnum = r.tenant
                      AND pg_get_expr(d.adbin, d.adrelid) = 'flowstone.tenant_id()')
           OR EXISTS (SELECT FROM right_of a WHERE a.relid = r.oid AND a.grantee IN (SELECT s.oid FROM served s)))
),
ancestor (oid) AS (
    SELECT m.oid FROM marked m
    UNION
    SELECT i.inhparent FROM ancestor a JOIN pg_inherits i ON i.inhrelid = a.oid
),
descendant (oid) AS (
    SELECT a.oid FROM ancestor a
    UNION
    SELECT i.inhrelid FROM descendant d JOIN pg_inherits i ON i.inhparent = d.oid
),
tenant_table AS (
    SELECT r.*, EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = r.oid) AS child
    FROM descendant d JOIN relation r ON r.oid = d.oid WHERE r.relkind IN ('r', 'p')
),
ledger AS (
    SELECT r.*, false AS child FROM relation r
    WHERE r.nspname = 'flowstone' AND r.relname IN ({", ".join(map(literal, LEDGER))})
),
protected AS (
    SELECT * FROM tenant_table UNION ALL SELECT * FROM ledger
),
pattern (relname, name, permissive, command, roles, used, checked) AS ({_policies(TENANT_POLICIES)}),
written (relname, name, permissive, command, roles, used, checked) AS ({_policies(LEDGER_POLICIES)}),
wanted_policy AS (
    SELECT t.oid, w.name, w.permissive, w.command, w.roles, w.used, w.checked FROM tenant_table t, pattern w
    UNION ALL
    SELECT l.oid, w.name, w.permissive, w.command, w.roles, w.used, w.checked
    FROM ledger l JOIN written w ON w.relname = l.relname
),
found_policy AS (
    SELECT p.polrelid AS oid, p.polname::text AS name, p.polpermissive AS permissive, p.polcmd::text AS command,
           (SELECT string_agg(CASE u.role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(u.role)::text END, ','
                              ORDER BY pg_get_userbyid(u.role)::text COLLATE "C")
            FROM unnest(p.polroles) u (role)) AS roles,
           replace(regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\\s+', ' ', 'g'),
                   '(tenant_id)::text', 'tenant_id') AS used,
           replace(regexp_replace(pg_get_expr(p.polwithcheck, p.polrelid), '\\s+', ' ', 'g'),
                   '(tenant_id)::text', 'tenant_id') AS checked,
           p.polroles
    FROM pg_policy p JOIN protected t ON t.oid = p.polrelid
),
missing_policy AS (
    SELECT oid, name, permissive, command, roles, used, checked FROM wanted_policy
    EXCEPT SELECT oid, name, permissive, command, roles, used, checked FROM found_policy
),
extra_policy AS (
    SELECT oid, name, permissive, command, roles, used, checked FROM found_policy
    EXCEPT SELECT oid, name, permissive, command, roles, used, checked FROM wanted_policy
)
"""  # noqa: S608 - put together from this package's constants
"""Relations that the checks share: who works for tenants, what they reach, which tables have tenants' rows.

`reached` are all logins of scopes, pooled ones, what they are members of, and PUBLIC (0); `served` leaves out the
namespaces' logins, which may have tables of their own. What a tenant makes in its own schema, or says of what it will
make, opens nothing to others: if that turned a check red, one tenant could stop everybody's work.
"""
