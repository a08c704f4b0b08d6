"""Operations of Alembic on a tenant table's owner, the default of `tenant_id`, and on keys that forget the tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from flowstone.db.tenant_table_ops import TableOp, hand_over, registered
from flowstone.errors import InvalidSpec
from flowstone.tenant.protection import DEFAULT, OWNER
from flowstone.tenant.statements import identifier


@registered("alter_table_owner")
@dataclass(eq=False)
class OwnerOp(TableOp):
    """Gives a table to a role that nobody logs in as."""

    memory: ClassVar[frozenset[str]] = frozenset(["was"])

    table: str
    owner: str = OWNER
    schema: str = "public"
    was: str = OWNER

    def statements(self) -> list[str]:
        """One statement."""
        return [hand_over(self.qualified, identifier(self.schema), identifier(self.owner))]

    def said(self) -> Sequence[str]:
        """Whose it is."""
        return (f"its owner is {self.was}, whom policies cannot hold",)

    def reverse(self) -> Self:
        """Give it back."""
        return type(self)(self.table, self.was, self.schema, self.owner)


@registered("alter_tenant_default")
@dataclass(eq=False)
class TenantDefaultOp(TableOp):
    """Sets where `tenant_id` comes from; None drops the default."""

    memory: ClassVar[frozenset[str]] = frozenset(["was"])

    table: str
    default: str | None = DEFAULT
    schema: str = "public"
    was: str | None = DEFAULT

    def statements(self) -> list[str]:
        """One statement."""
        word = "DROP DEFAULT" if self.default is None else f"SET DEFAULT {self.default}"
        return [f"ALTER TABLE {self.qualified} ALTER COLUMN tenant_id {word}"]

    def said(self) -> Sequence[str]:
        """What it is now."""
        return (f"the default of tenant_id is {self.was or 'missing'}",)

    def reverse(self) -> Self:
        """Set it back."""
        return type(self)(self.table, self.was, self.schema, self.default)


@registered("replace_open_key")
@dataclass(eq=False)
class OpenKeyOp(TableOp):
    """Stands for a key that must be made again by hand: what refers to it, and what that locks, nobody knows here."""

    table: str
    key: str
    schema: str = "public"

    def statements(self) -> list[str]:
        """Refuse.

        Raises:
            InvalidSpec: Always; its place is for the statements that make the key anew.
        """
        remedy = "write here what drops it and makes it with tenant_id as its first column"
        raise InvalidSpec(f"{self.schema}.{self.table}", self.key, remedy)

    def said(self) -> Sequence[str]:
        """Which key."""
        return (f"{self.key} does not begin with tenant_id",)

    def reverse(self) -> Self:
        """The same: there is nothing to take back."""
        return self
