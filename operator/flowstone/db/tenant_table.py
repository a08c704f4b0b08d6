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

from flowstone.errors import InvalidSpec
from flowstone.tenant.protection import DEFAULT, OPERATOR, OWNER, POOL, TENANT, Action, protect
from flowstone.tenant.statements import identifier, literal

COLUMN = "tenant_id"

ALL: tuple[Action, ...] = ("SELECT", "INSERT", "UPDATE", "DELETE")


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
            InvalidSpec: A key would reach over tenants.
        """
        operations.invoke(cls(name, columns, key, indexes, schema, actions, owner))


@Operations.implementation_for(TenantTableOp)
def _make(operations: Operations, operation: TenantTableOp) -> None:
    tenant = sa.Column(COLUMN, sa.Text(collation="C"), nullable=False, server_default=sa.text(DEFAULT))
    primary = sa.PrimaryKeyConstraint(COLUMN, *operation.key)
    made = operations.create_table(operation.name, tenant, *operation.columns, primary, schema=operation.schema)
    _check(made)
    for columns in operation.indexes:
        label = "_".join([operation.name, *columns, "idx"])
        operations.create_index(label, operation.name, [COLUMN, *columns], schema=operation.schema)
    table = f"{identifier(operation.schema)}.{identifier(operation.name)}"
    names = [item.name for item in operation.columns if isinstance(item, sa.Column)]
    operations.execute(f"GRANT USAGE ON SCHEMA {identifier(operation.schema)} TO {TENANT}, {POOL}, {OPERATOR}")
    for statement in protect(table, names, actions=operation.actions):
        operations.execute(statement)
    if operation.owner is not None:
        operations.execute(_hand_over(table, identifier(operation.schema), identifier(operation.owner)))


def _hand_over(table: str, schema: str, owner: str) -> str:
    """Give the table to its owner, who must be allowed to create in the schema when no superuser does this."""
    may_create = f"has_schema_privilege({literal(owner)}::regrole, {literal(schema)}::regnamespace, 'CREATE')"
    return f"""
        DO $hand_over$
        DECLARE
            lacking CONSTANT boolean DEFAULT NOT {may_create};
        BEGIN
            GRANT USAGE ON SCHEMA {schema} TO {owner};
            IF lacking THEN GRANT CREATE ON SCHEMA {schema} TO {owner}; END IF;
            ALTER TABLE {table} OWNER TO {owner};
            IF lacking THEN REVOKE CREATE ON SCHEMA {schema} FROM {owner}; END IF;
        END
        $hand_over$
    """


def _check(table: sa.Table) -> None:
    """Refuse keys that would reach over tenants; the migration's transaction takes the table away again."""
    for constraint in table.constraints:
        if isinstance(constraint, sa.PrimaryKeyConstraint | sa.UniqueConstraint | sa.ForeignKeyConstraint):
            _require_first(f"{table.name}.{type(constraint).__name__}", [one.name for one in constraint.columns])
    for index in table.indexes:
        _require_first(f"{table.name}.{index.name}", [one.name for one in index.columns])


def _require_first(field: str, names: Sequence[str]) -> None:
    if not names or names[0] != COLUMN:
        raise InvalidSpec(field, ", ".join(names), f"begin with {COLUMN}, or other tenants are reached through it")
