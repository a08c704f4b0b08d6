"""${message}."""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand; what older code still reads stays until a later release."""
    ${upgrades if upgrades else "raise NotImplementedError"}
