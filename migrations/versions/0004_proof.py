"""Proof of isolation: a table for the canaries' rows, and a function that restores a table's protection.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# A table as `op.tenant_table` makes them, with each kind of key through which one tenant could learn of another.
CANARY = """
CREATE TABLE flowstone.canary (
    tenant_id text COLLATE "C" NOT NULL DEFAULT flowstone.tenant_id(),
    id bigint NOT NULL,
    parent bigint,
    note text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, id),
    CONSTRAINT canary_tenant_id_note_key UNIQUE (tenant_id, note),
    CONSTRAINT canary_parent_fkey FOREIGN KEY (tenant_id, parent) REFERENCES flowstone.canary (tenant_id, id)
)
"""

# What the last proof found, for all replicas alike, so that a tenant's status does not depend on who writes it.
PROOF = """
CREATE TABLE flowstone.proof (
    cluster text COLLATE "C" CONSTRAINT proof_pkey PRIMARY KEY,
    version integer NOT NULL,
    digest text NOT NULL,
    fingerprint text NOT NULL,
    proven_at timestamptz NOT NULL,
    checks integer NOT NULL,
    open text[] NOT NULL,
    admitted text[] NOT NULL,
    skipped text[] NOT NULL
)
"""

LOGIN = "(SELECT s.tenant_id FROM flowstone.login_scope AS s WHERE s.role_name = session_user)"
CONTEXT = "(SELECT flowstone.context_tenant())"
MY_SCOPE = "(SELECT m.scope FROM flowstone.login_scope AS m WHERE m.role_name = session_user)"
MY_CONTEXT = "(SELECT flowstone.context_scope())"
SCOPES = "flowstone_namespace, flowstone_tenant"
REPORTED = "state = 'succeeded' AND fence = 0 AND substr(backfill::text, 15, 1) = '0'"


def policy(table: str, name: str, role: str, using: str | None, check: str | None = None, kind: str = "") -> str:
    """Return the statement that makes a policy; `kind` comes before TO, such as FOR SELECT."""
    parts = [f"USING ({using})" if using else "", f"WITH CHECK ({check})" if check else ""]
    return f"CREATE POLICY {name} ON {table} {kind} TO {role} {' '.join(parts)};"


def everything(table: str, name: str, role: str, predicate: str, kind: str = "") -> str:
    """Return the statement that makes a policy with one predicate for all that is done."""
    return policy(table, name, role, predicate, predicate, kind)


TENANT_POLICIES = (
    ("tenant_rows", "", "flowstone_tenant", LOGIN),
    ("tenant_floor", "AS RESTRICTIVE", "flowstone_tenant", LOGIN),
    ("pool_rows", "", "flowstone_pool", CONTEXT),
    ("pool_floor", "AS RESTRICTIVE", "flowstone_pool", CONTEXT),
)


def of_tenants(table: str) -> list[str]:
    """Return the five policies of a table with tenants' rows."""
    made = [everything(table, name, role, f"tenant_id = {value}", kind) for name, kind, role, value in TENANT_POLICIES]
    return [*made, everything(table, "operator_rows", "flowstone_operator", "true")]


def of_ledger(table: str, *others: str) -> list[str]:
    """Return the operator's policy, and the others."""
    return [everything(table, "operator_rows", "flowstone_operator", "true"), *others]


M, B, L, S, T = (f"flowstone.{name}" for name in ("materialization", "batch", "latest", "login_scope", "tenant"))
MINE, CONTEXTUAL = f"scope = {MY_SCOPE}", f"scope = {MY_CONTEXT}"

LEDGER = {
    "flowstone.backfill": of_ledger("flowstone.backfill"),
    "flowstone.attempt": of_ledger("flowstone.attempt"),
    M: of_ledger(
        M,
        policy(M, "scope_reads", SCOPES, MINE, kind="FOR SELECT"),
        policy(
            M,
            "scope_reports",
            SCOPES,
            f"{MINE} AND state = 'running'",
            f"{MINE} AND state IN ('succeeded', 'failed')",
            "FOR UPDATE",
        ),
        everything(M, "scope_floor", SCOPES, MINE, "AS RESTRICTIVE"),
        policy(M, "pool_rows", "flowstone_pool", CONTEXTUAL, kind="FOR SELECT"),
        policy(M, "pool_reports", "flowstone_pool", None, f"{CONTEXTUAL} AND {REPORTED}", "FOR INSERT"),
        everything(M, "pool_floor", "flowstone_pool", CONTEXTUAL, "AS RESTRICTIVE"),
        f"GRANT SELECT, UPDATE (state, error, finished_at) ON {M} TO {SCOPES};",
        f"GRANT SELECT, INSERT (scope, asset, partition, backfill, ordinal, state, fence, finished_at) ON {M} "
        "TO flowstone_pool;",
    ),
    B: of_ledger(
        B,
        policy(B, "scope_reads", SCOPES, MINE, kind="FOR SELECT"),
        policy(
            B,
            "scope_reports",
            SCOPES,
            f"{MINE} AND state = 'open'",
            f"{MINE} AND state = 'open' AND reporting",
            "FOR UPDATE",
        ),
        everything(B, "scope_floor", SCOPES, MINE, "AS RESTRICTIVE"),
        policy(B, "owner_reads", "flowstone_owner", "true", kind="FOR SELECT"),
        f"GRANT SELECT, UPDATE (reporting) ON {B} TO {SCOPES};",
    ),
    L: of_ledger(
        L,
        everything(L, "owner_rows", "flowstone_owner", "true"),
        policy(L, "pool_rows", "flowstone_pool", CONTEXTUAL, kind="FOR SELECT"),
        everything(L, "pool_floor", "flowstone_pool", CONTEXTUAL, "AS RESTRICTIVE"),
        f"GRANT SELECT ON {L} TO flowstone_pool;",
    ),
    S: of_ledger(
        S,
        policy(S, "own_login", SCOPES, "role_name = session_user", kind="FOR SELECT"),
        policy(S, "owner_reads", "flowstone_owner", "true", kind="FOR SELECT"),
        f"GRANT SELECT (role_name, scope, tenant_id) ON {S} TO {SCOPES};",
    ),
    T: of_ledger(T, policy(T, "owner_reads", "flowstone_owner", "true", kind="FOR SELECT")),
}


def branches() -> str:
    """Return one branch for each table of the ledger."""
    made = (f"IF target = '{table}'::regclass THEN\n{chr(10).join(lines)}" for table, lines in LEDGER.items())
    return "\nELS".join(made)


def formatted() -> str:
    """Return the statements that make the five policies on any table."""
    return "\n".join(f"EXECUTE format({quoted(line)}, target);" for line in of_tenants("%s"))


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


# The owner's rights, in the hands of the operator alone: a table that the owner has, and nothing but the protection
# that is written here. It all happens in one statement, so there is no moment without.
RESTORE = f"""
CREATE FUNCTION flowstone.restore_protection(target regclass) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    reached CONSTANT oid[] := ARRAY['flowstone_tenant'::regrole, 'flowstone_pool'::regrole,
        'flowstone_namespace'::regrole]::oid[];
    of_ledger CONSTANT boolean := EXISTS (SELECT FROM pg_class c WHERE c.oid = target
        AND c.relnamespace = 'flowstone'::regnamespace AND c.relname <> 'canary');
    columns CONSTANT text := (SELECT string_agg(quote_ident(a.attname), ', ') FROM pg_attribute a
        WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'tenant_id'
        AND a.attgenerated = '');
    found record;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = target AND c.relkind IN ('r', 'p')
        AND c.relowner = 'flowstone_owner'::regrole)
    THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a table of flowstone_owner';
    END IF;
    IF NOT of_ledger OR target::text IN ({", ".join(map(quoted, LEDGER))}) THEN
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target);
    END IF;
    FOR found IN SELECT p.polname AS name FROM pg_policy p WHERE p.polrelid = target AND (of_ledger
        OR p.polname IN ('tenant_rows', 'tenant_floor', 'pool_rows', 'pool_floor', 'operator_rows')
        OR p.polpermissive AND EXISTS (SELECT FROM unnest(p.polroles) AS r (role), unnest(reached) AS g (role)
            WHERE CASE r.role WHEN 0 THEN true ELSE pg_has_role(g.role, r.role, 'MEMBER')
                OR pg_has_role(r.role, g.role, 'USAGE') END))
    LOOP
        EXECUTE format('DROP POLICY %I ON %s', found.name, target);
    END LOOP;
    FOR found IN
        SELECT DISTINCT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS name,
            x.grantee = 0 OR of_ledger OR x.grantee <> ALL (reached[1:2]) AS stranger
        FROM (SELECT c.relacl AS acl FROM pg_class c WHERE c.oid = target UNION ALL
              SELECT a.attacl FROM pg_attribute a WHERE a.attrelid = target AND a.attacl IS NOT NULL) AS l,
            aclexplode(l.acl) AS x
        WHERE CASE x.grantee WHEN 0 THEN true ELSE EXISTS (SELECT FROM unnest(reached) AS g (role)
            WHERE pg_has_role(x.grantee, g.role, 'USAGE')) END
            AND x.grantee <> 'flowstone_operator'::regrole
            AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = x.grantee UNION ALL SELECT false LIMIT 1)
    LOOP
        IF found.stranger THEN
            EXECUTE format('REVOKE ALL ON TABLE %s FROM %s CASCADE', target, found.name);
        ELSE
            EXECUTE format('REVOKE GRANT OPTION FOR ALL ON TABLE %s FROM %s CASCADE', target, found.name);
            EXECUTE format('REVOKE TRUNCATE, REFERENCES, TRIGGER ON TABLE %s FROM %s CASCADE', target, found.name);
            IF current_setting('server_version_num')::int >= 170000 THEN
                EXECUTE format('REVOKE MAINTAIN ON TABLE %s FROM %s CASCADE', target, found.name);
            END IF;
            EXECUTE format('REVOKE UPDATE (tenant_id), REFERENCES (tenant_id) ON TABLE %s FROM %s CASCADE',
                target, found.name);
            IF has_table_privilege(found.name, target, 'UPDATE') THEN
                EXECUTE format('REVOKE UPDATE ON TABLE %s FROM %s CASCADE', target, found.name);
                EXECUTE format('GRANT UPDATE (%s) ON TABLE %s TO %s', columns, target, found.name);
            END IF;
        END IF;
    END LOOP;
    {branches()}
    ELSIF of_ledger THEN
        NULL;
    ELSIF EXISTS (SELECT FROM pg_class c WHERE c.oid = target AND c.relispartition)
        OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = target)
    THEN
        NULL;
    ELSE
        {formatted()}
    END IF;
END
$$
"""  # noqa: S608 - put together from constants

GRANTS = (
    "REVOKE ALL ON FUNCTION flowstone.restore_protection(regclass) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION flowstone.restore_protection(regclass) TO flowstone_operator",
    "GRANT SELECT, INSERT, UPDATE (id, parent, note), DELETE ON flowstone.canary TO flowstone_tenant, flowstone_pool",
    "GRANT SELECT, DELETE ON flowstone.canary TO flowstone_operator",
    "GRANT SELECT, INSERT, UPDATE ON flowstone.proof TO flowstone_operator",
)


def upgrade() -> None:
    """Add what the proof needs; older code goes on without it."""
    op.execute(CANARY)
    op.execute(PROOF)
    op.execute("ALTER TABLE flowstone.canary ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    for statement in of_tenants("flowstone.canary"):
        op.execute(statement)
    for statement in (RESTORE, *GRANTS):
        op.execute(statement)
