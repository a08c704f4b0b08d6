"""Only canaries have rows in the canaries' table: a tenant could fill it until the proof takes too long for everybody.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Empty the table, which has rows while a proof runs and no others; older code goes on with the constraint."""
    op.execute("TRUNCATE flowstone.canary")
    op.execute(
        "ALTER TABLE flowstone.canary ADD CONSTRAINT canary_tenant_id_check CHECK (tenant_id ^@ 'flowstone-canary-')"
    )
