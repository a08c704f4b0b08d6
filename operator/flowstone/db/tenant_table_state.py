"""Reads from the catalogue what protects a table, over whatever connection a migration has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from flowstone.tenant.wanted import WantedPolicy


@dataclass(frozen=True, slots=True)
class Right:
    """A right of one role on a table, or on one column of it.

    Attributes:
        role: A name; PUBLIC is everybody.
    """

    role: str
    privilege: str
    column: str | None = None
    grantable: bool = False


@dataclass(frozen=True, slots=True)
class Protection:
    """What protects a table.

    Attributes:
        policies: With an empty `table`.
        rights: Of PUBLIC, the operator, the groups of scopes and pooled logins, and whoever has what these have.
    """

    enabled: bool
    forced: bool
    policies: frozenset[WantedPolicy]
    rights: frozenset[Right]


@dataclass(frozen=True, slots=True)
class Found(Protection):
    """What the catalogue shows.

    Attributes:
        child: It is a partition, or inherits from another table.
        marked: It was made as a tenant table: its default or one of its policies says so.
        columns: All but `tenant_id`.
        owner_is_tenants: The owner has what tenants, namespaces or pooled logins have, so no policy holds it for long.
        default: Of `tenant_id`, in SQL.
        open_keys: Keys, indexes and exclusion constraints that do not begin with `tenant_id`.
    """

    child: bool
    marked: bool
    columns: tuple[str, ...]
    owner: str
    owner_is_tenants: bool
    default: str | None
    open_keys: tuple[str, ...]

    @property
    def bare(self) -> bool:
        """Nothing protects it, and nobody was let in."""
        return not (self.enabled or self.forced or self.policies or self.rights)


_TABLE = sa.text("""
    SELECT c.oid, c.relrowsecurity, c.relforcerowsecurity,
           EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
           EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid
                   AND d.adnum = a.attnum WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'
                   AND pg_catalog.pg_get_expr(d.adbin, d.adrelid) = 'flowstone.tenant_id()')
           OR EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid
                      AND p.polname IN ('tenant_rows', 'tenant_floor', 'pool_rows', 'pool_floor')),
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attname <> 'tenant_id' ORDER BY a.attnum),
           pg_catalog.pg_get_userbyid(c.relowner)::text,
           EXISTS (SELECT FROM pg_catalog.pg_roles o, pg_catalog.pg_roles g WHERE o.oid = c.relowner AND NOT o.rolsuper
                   AND g.rolname IN ('flowstone_tenant', 'flowstone_pool', 'flowstone_namespace', 'flowstone_apart')
                   AND pg_catalog.pg_has_role(o.oid, g.oid, 'MEMBER')),
           (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attribute a
            JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'),
           ARRAY(SELECT k.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class k ON k.oid = i.indexrelid
                 WHERE i.indrelid = c.oid AND i.indkey[0] IS DISTINCT FROM (
                     SELECT a.attnum FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped) ORDER BY 1)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relname = :name
""")

_POLICIES = sa.text(r"""
    SELECT p.polname::text, p.polcmd::text, p.polpermissive,
           (SELECT pg_catalog.string_agg(CASE u.role WHEN 0 THEN 'PUBLIC'
                       ELSE pg_catalog.pg_get_userbyid(u.role)::text END, ','
                       ORDER BY pg_catalog.pg_get_userbyid(u.role)::text COLLATE "C")
            FROM pg_catalog.unnest(p.polroles) u (role)),
           pg_catalog.replace(pg_catalog.regexp_replace(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '\s+', ' ', 'g'),
                              '(tenant_id)::text', 'tenant_id'),
           pg_catalog.replace(pg_catalog.regexp_replace(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid),
                                                        '\s+', ' ', 'g'), '(tenant_id)::text', 'tenant_id')
    FROM pg_catalog.pg_policy p WHERE p.polrelid = :oid
""")

# Superusers and the owner have every right anyway; who merely administers a group has none of its rights.
_RIGHTS = sa.text("""
    SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END,
           x.privilege_type, l.name, x.is_grantable
    FROM (SELECT c.relowner, c.relacl AS acl, NULL::text AS name FROM pg_catalog.pg_class c WHERE c.oid = :oid
          UNION ALL
          SELECT c.relowner, a.attacl, a.attname::text FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid WHERE c.oid = :oid AND NOT a.attisdropped) l,
         pg_catalog.aclexplode(l.acl) x
    WHERE l.acl IS NOT NULL AND x.grantee <> l.relowner
      AND (x.grantee = 0 OR EXISTS (
            SELECT FROM pg_catalog.pg_roles r, pg_catalog.pg_roles g
            WHERE r.oid = x.grantee AND NOT r.rolsuper
              AND (g.oid = r.oid AND r.rolname = 'flowstone_operator'
                   OR g.rolname IN ('flowstone_tenant', 'flowstone_pool', 'flowstone_namespace', 'flowstone_apart')
                      AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))))
""")

_CHILDREN = sa.text("""
    WITH RECURSIVE below (oid) AS (
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :name
        UNION
        SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
    )
    SELECT n.nspname::text, c.relname::text FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') ORDER BY 1, 2
""")


def find(connection: sa.Connection, schema: str, name: str) -> Found:
    """Return what protects a table that is there."""
    with _qualified(connection):
        oid, enabled, forced, child, marked, columns, owner, tenants, default, keys = connection.execute(
            _TABLE, {"schema": schema, "name": name}
        ).one()
        policies = connection.execute(_POLICIES, {"oid": oid}).all()
        rights = connection.execute(_RIGHTS, {"oid": oid}).all()
    return Found(
        enabled,
        forced,
        frozenset(
            WantedPolicy("", title, roles, using, check, command, permissive)
            for title, command, permissive, roles, using, check in policies
        ),
        frozenset(Right(role, privilege, column, grantable) for role, privilege, column, grantable in rights),
        child,
        marked,
        tuple(columns),
        owner,
        tenants,
        default,
        tuple(keys),
    )


def children(connection: sa.Connection, schema: str, name: str) -> list[tuple[str, str]]:
    """Return schema and name of a table's partitions and heirs, at any depth."""
    return [(place, label) for place, label in connection.execute(_CHILDREN, {"schema": schema, "name": name})]


@contextmanager
def _qualified(connection: sa.Connection) -> Iterator[None]:
    """Let the server write out each name's schema: a name that it leaves bare could be anybody's."""
    before = connection.execute(sa.text("SELECT pg_catalog.current_setting('search_path')")).scalar_one()
    setting = sa.text("SELECT pg_catalog.set_config('search_path', :path, false)")
    connection.execute(setting, {"path": "pg_catalog, pg_temp"})
    yield
    connection.execute(setting, {"path": before})
