"""Tenants: the registry, the signed context of pooled logins, and their policies on the ledger.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REGISTRY = """
CREATE TABLE flowstone.tenant (
    cluster text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL UNIQUE
        CONSTRAINT tenant_id_check CHECK (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'),
    scope text COLLATE "C" NOT NULL UNIQUE
        CONSTRAINT tenant_scope_check CHECK (scope = 't/' || cluster || '/' || tenant_id),
    resource_uid text,
    tier text COLLATE "C" NOT NULL DEFAULT 'basic'
        CONSTRAINT tenant_tier_check CHECK (tier IN ('basic', 'standard', 'premium', 'enterprise')),
    isolation text COLLATE "C" NOT NULL DEFAULT 'Shared'
        CONSTRAINT tenant_isolation_check CHECK (isolation IN ('Shared', 'Schema', 'Database')),
    state text COLLATE "C" NOT NULL DEFAULT 'active'
        CONSTRAINT tenant_state_check CHECK (state IN ('active', 'suspended', 'purged')),
    max_parallel integer CONSTRAINT tenant_max_parallel_check CHECK (max_parallel > 0),
    namespaces text[] NOT NULL DEFAULT '{}',
    role_base text COLLATE "C" UNIQUE,
    active_slot text COLLATE "C" CONSTRAINT tenant_slot_check CHECK (active_slot IN ('a', 'b')),
    rotated_at timestamptz,
    rotate_token text NOT NULL DEFAULT '',
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    suspended_at timestamptz,
    retain_until timestamptz,
    export_digest text,
    purged_at timestamptz,
    lease_owner text,
    lease_until timestamptz,
    PRIMARY KEY (cluster, tenant_id)
)
"""

KEYS = """
CREATE TABLE flowstone.context_key (
    slot smallint PRIMARY KEY CONSTRAINT context_key_slot_check CHECK (slot IN (1, 2)),
    inner_pad bytea NOT NULL CONSTRAINT context_key_inner_check CHECK (octet_length(inner_pad) = 64),
    outer_pad bytea NOT NULL CONSTRAINT context_key_outer_check CHECK (octet_length(outer_pad) = 64)
)
"""

# HMAC-SHA256 is checked over the payload as a whole, before any of it is looked at: what was signed was made by us,
# so it is well-formed, and what was not signed never reaches a cast that could fail.
SIGNED = """
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
DECLARE
    context CONSTANT text := current_setting('flowstone.context', true);
    payload CONSTANT text := left(context, -65);
    known text;
BEGIN
    IF context IS NULL OR length(context) < 80 THEN
        RETURN NULL;
    END IF;
    PERFORM FROM flowstone.context_key k
        WHERE encode(sha256(k.outer_pad || sha256(k.inner_pad || convert_to(payload, 'UTF8'))), 'hex')
            = right(context, 64);
    IF NOT FOUND OR right(payload, 10)::bigint <= extract(epoch FROM statement_timestamp()) THEN
        RETURN NULL;
    END IF;
"""

CONTEXT_SCOPE = f"""
CREATE FUNCTION flowstone.context_scope() RETURNS text {SIGNED}
    SELECT t.scope INTO known FROM flowstone.tenant t WHERE t.scope = left(payload, -11) AND t.state = 'active';
    RETURN known;
END
$$
"""  # noqa: S608 - put together from constants

# Tells an unknown tenant from a bad signature, to whoever could make the signature.
CONTEXT_SIGNED = f"""
CREATE FUNCTION flowstone.context_signed() RETURNS text {SIGNED}
    known := left(payload, -11);
    RETURN known;
END
$$
"""

CONTEXT_TENANT = """
CREATE FUNCTION flowstone.context_tenant() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN split_part(flowstone.context_scope(), '/', 3);
END
$$
"""

ENTER = """
CREATE FUNCTION flowstone.enter_tenant(context text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held CONSTANT text := coalesce(current_setting('flowstone.context', true), '');
BEGIN
    IF held <> '' AND left(held, -76) <> left(context, -76) THEN
        RETURN 'other';
    END IF;
    IF held = '' AND EXISTS (SELECT FROM pg_cursors WHERE name <> '') THEN
        RETURN 'cursor';
    END IF;
    PERFORM set_config('flowstone.context', context, true);
    IF flowstone.context_scope() IS DISTINCT FROM left(context, -76) THEN
        RETURN CASE WHEN flowstone.context_signed() = left(context, -76) THEN 'unknown' ELSE 'refused' END;
    END IF;
    RETURN 'entered';
END
$$
"""

# A column's default cannot hold a sub-select, so it is a function; row level security checks what it gives.
TENANT_ID = """
CREATE FUNCTION flowstone.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET row_security = on AS $$
BEGIN
    RETURN coalesce(
        (SELECT s.tenant_id FROM flowstone.login_scope s WHERE s.role_name = session_user),
        split_part(flowstone.context_scope(), '/', 3)
    );
END
$$
"""

# What a program reports belongs to no backfill: fence 0 is never handed out, and a uid of version 0 is nobody's, so
# that a report cannot change the counts of a backfill, its own scope's or another's.
REPORTED = "state = 'succeeded' AND fence = 0 AND substr(backfill::text, 15, 1) = '0'"

REPORT_TRIGGER = """
CREATE TRIGGER record_reported AFTER INSERT ON flowstone.materialization
FOR EACH ROW WHEN (NEW.state = 'succeeded')
EXECUTE FUNCTION flowstone.record_latest()
"""

MINE = "scope = (SELECT flowstone.context_scope())"

POLICIES = (
    f"CREATE POLICY pool_rows ON flowstone.materialization FOR SELECT TO flowstone_pool USING ({MINE})",
    "CREATE POLICY pool_reports ON flowstone.materialization FOR INSERT TO flowstone_pool "
    f"WITH CHECK ({MINE} AND {REPORTED})",
    f"CREATE POLICY pool_rows ON flowstone.latest FOR SELECT TO flowstone_pool USING ({MINE})",
    *(
        f"CREATE POLICY pool_floor ON flowstone.{table} AS RESTRICTIVE TO flowstone_pool "
        f"USING ({MINE}) WITH CHECK ({MINE})"
        for table in ("materialization", "latest")
    ),
    "ALTER TABLE flowstone.tenant ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE flowstone.tenant FORCE ROW LEVEL SECURITY",
    "CREATE POLICY operator_rows ON flowstone.tenant TO flowstone_operator USING (true) WITH CHECK (true)",
    # FORCE binds the owner too, and the functions above look tenants and logins up as the owner.
    "CREATE POLICY owner_reads ON flowstone.tenant FOR SELECT TO flowstone_owner USING (true)",
    "CREATE POLICY owner_reads ON flowstone.login_scope FOR SELECT TO flowstone_owner USING (true)",
)

GRANTS = (
    "REVOKE ALL ON FUNCTION flowstone.context_scope(), flowstone.context_signed(), flowstone.context_tenant(), "
    "flowstone.enter_tenant(text), flowstone.tenant_id() FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION flowstone.context_scope(), flowstone.context_signed(), flowstone.context_tenant(), "
    "flowstone.enter_tenant(text) TO flowstone_pool",
    "GRANT EXECUTE ON FUNCTION flowstone.tenant_id() TO flowstone_pool, flowstone_tenant, flowstone_operator",
    "GRANT SELECT, INSERT (scope, asset, partition, backfill, ordinal, state, fence, finished_at) "
    "ON flowstone.materialization TO flowstone_pool",
    "GRANT SELECT ON flowstone.latest TO flowstone_pool",
    "GRANT SELECT, INSERT, UPDATE ON flowstone.tenant TO flowstone_operator",
    "GRANT DELETE ON flowstone.latest TO flowstone_operator",  # of a tenant that is purged
)


def upgrade() -> None:
    """Add what tenants need; what exists keeps working."""
    functions = (CONTEXT_SCOPE, CONTEXT_SIGNED, CONTEXT_TENANT, ENTER, TENANT_ID, REPORT_TRIGGER)
    for statement in (REGISTRY, KEYS, *functions, *POLICIES, *GRANTS):
        op.execute(statement)
