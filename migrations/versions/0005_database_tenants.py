"""Tenants with a database of their own: when it was first there, so that one that is gone is not made anew.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; older code goes on without it."""
    op.execute("ALTER TABLE flowstone.tenant ADD COLUMN database_made_at timestamptz")
