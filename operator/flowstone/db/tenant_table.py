"""`op.tenant_table(...)` for migrations: a table whose rows are tenants', protected from its first moment.

    from flowstone.db import tenant_table   # registers the operation

    op.tenant_table("booking", sa.Column("id", sa.BigInteger), sa.Column("note", sa.Text), key=["id"])

`tenant_id` comes first in the primary key, in every unique key, in every index and in every foreign key: a global key
tells tenants that somebody else's value exists, and a single-column foreign key reaches into others' rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from flowstone.db.tenant_table_check import tenant_info
from flowstone.db.tenant_table_ops import ProtectOp
from flowstone.db.tenant_table_rules import COLUMN, check_key, check_table
from flowstone.tenant.protection import ALL, DEFAULT, OWNER, Action, checked_actions

__all__ = ["ALL", "COLUMN", "TenantTableOp", "tenant_info"]


@Operations.register_operation("tenant_table")
class TenantTableOp(MigrateOperation):
    """Makes a table with tenants' rows."""

    def __init__(
        self,
        name: str,
        columns: Sequence[sa.schema.SchemaItem],
        key: Sequence[str],
        indexes: Sequence[Sequence[str]],
        schema: str,
        actions: Sequence[Action],
        owner: str | None,
    ) -> None:
        self.name = name
        self.columns = columns
        self.key = key
        self.indexes = indexes
        self.schema = schema
        self.actions = actions
        self.owner = owner

    @classmethod
    def tenant_table(
        cls,
        operations: Operations,
        name: str,
        *columns: sa.schema.SchemaItem,
        key: Sequence[str],
        indexes: Sequence[Sequence[str]] = (),
        schema: str = "public",
        actions: Sequence[Action] = ALL,
        owner: str | None = OWNER,
    ) -> None:
        """Make a table whose rows are tenants', with column, keys, indexes, policies and grants.

        Args:
            operations: Alembic's.
            name: The table's name.
            columns: Its other columns and constraints; unique and foreign keys begin with `tenant_id`.
            key: The primary key after `tenant_id`.
            indexes: Columns of each index after `tenant_id`.
            schema: Where it is made.
            actions: What tenants may do with their rows.
            owner: A role that nobody logs in as; None leaves the table to whoever migrates.

        Raises:
            InvalidSpec: A key would reach over tenants, one tenant could use up the numbers of a column, or
                tenants would have a right that no policy holds back.
        """
        allowed = checked_actions(name, actions)
        check_key(name, key)
        operations.invoke(cls(name, columns, key, indexes, schema, allowed, owner))


@Operations.implementation_for(TenantTableOp)
def _make(operations: Operations, operation: TenantTableOp) -> None:
    tenant = sa.Column(COLUMN, sa.Text(collation="C"), nullable=False, server_default=sa.text(DEFAULT))
    primary = sa.PrimaryKeyConstraint(COLUMN, *operation.key)
    made = operations.create_table(operation.name, tenant, *operation.columns, primary, schema=operation.schema)
    check_table(made)  # the migration's transaction takes it away again
    for columns in operation.indexes:
        label = "_".join([operation.name, *columns, "idx"])
        operations.create_index(label, operation.name, [COLUMN, *columns], schema=operation.schema)
    names = [item.name for item in operation.columns if isinstance(item, sa.Column) and item.computed is None]
    operations.invoke(ProtectOp(operation.name, names, operation.actions, operation.owner, operation.schema))
