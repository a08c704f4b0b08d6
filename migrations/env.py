"""Alembic's environment: revisions run on the connection that `flowstone.db.migrate` hands over.

Run by hand (`alembic upgrade head` in a checkout), it connects as the libpq variables PG* say, and expects
the roles and the schema that `flowstone migrate` makes.
"""

from __future__ import annotations

import sqlalchemy
from alembic import context

from flowstone.db import tenant_table  # noqa: F401 - `alembic check` sees policies and grants by it
from flowstone.db.migrate import engine_for, lock_for_migration
from flowstone.db.models import SCHEMA
from flowstone.db.tenant_models import Base  # its import adds the tenants' tables


def run(connection: sqlalchemy.Connection) -> None:
    """Run what the command asks for, in the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, parents: kind != "schema" or name == SCHEMA,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_by_hand() -> None:
    """Connect as PG* say, and migrate under the lock."""
    with engine_for("").begin() as connection:
        lock_for_migration(connection)
        run(connection)


given: sqlalchemy.Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    raise SystemExit("the ledger's revisions look at the server: run `flowstone migrate` without --sql")
if given is not None:
    run(given)
else:
    run_by_hand()
