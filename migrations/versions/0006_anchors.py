"""Keeps the policies of pooled logins where they are, whatever one of these logins drops.

DROP OWNED BY a role may be called by all its members. On PostgreSQL 16.14, 18.4 and others it then drops the policies
that name the role alone: one pooled login took everybody's. It fails as a whole, and changes nothing, once it comes to
an object on which the caller has a right on a column and none on the whole. Tenants' and namespaces' logins have such a
right on their own row of `login_scope`; pooled logins get one here, and see no row by it.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ANCHOR = "GRANT SELECT (slot) ON flowstone.login_scope TO flowstone_pool"

OTHERS = "GRANT SELECT (role_name, scope, tenant_id) ON flowstone.login_scope TO flowstone_namespace, flowstone_tenant;"

RESTORED = f"""
DO $$
BEGIN
    EXECUTE replace(
        pg_get_functiondef('flowstone.restore_protection(regclass)'::regprocedure), '{OTHERS}', '{OTHERS} {ANCHOR};');
END
$$
"""
"""`restore_protection` gives it again, like the other rights on this table."""


def upgrade() -> None:
    """Give the right; older code goes on without it."""
    op.execute(ANCHOR)
    op.execute(RESTORED)
