"""Steering: which tokens of a backfill were honoured, whether its failure budget stopped it, and pruned history.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COLUMNS = """
ALTER TABLE flowstone.backfill
    ADD COLUMN resumed text,
    ADD COLUMN retried text,
    ADD COLUMN forgiven bigint NOT NULL DEFAULT 0 CONSTRAINT backfill_forgiven_check CHECK (forgiven >= 0),
    ADD COLUMN stopped text,
    ADD COLUMN pruned_counts jsonb,
    ADD COLUMN pruned_at timestamptz
"""


def upgrade() -> None:
    """Add what steering writes down; older code goes on without it."""
    op.execute(COLUMNS)
