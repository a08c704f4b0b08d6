"""Operations of Alembic on what protects a table: row level security, policies, grants; each with its reverse.

`alembic check` and `alembic revision --autogenerate` speak in them (see `tenant_table_check`); importing
`flowstone.db.tenant_table` registers them. `op.<word>(...)` takes the fields of the class, in their order or by name.
Names are quoted; USING and WITH CHECK are SQL, as written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Protocol, Self, TypeVar

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from flowstone.errors import InvalidSpec
from flowstone.tenant.protection import ALL, OPERATOR, OWNER, POOL, TENANT, Action, checked_actions, policies, protect
from flowstone.tenant.statements import identifier, literal


class _Invoker(Protocol):
    def invoke(self, operation: MigrateOperation) -> Any: ...


class TableOp(MigrateOperation):
    """An operation on one table; a subclass is a dataclass, and a migration calls it with its fields.

    Attributes:
        word: Its name: `op.<word>(...)`.
        memory: Fields that only its reverse needs, so that a migration does not have them.
    """

    word: ClassVar[str]
    memory: ClassVar[frozenset[str]] = frozenset()
    table: str
    schema: str

    @classmethod
    def call(cls, operations: _Invoker, *given: Any, **named: Any) -> None:
        """Do it."""
        operations.invoke(cls(*given, **named))

    @property
    def qualified(self) -> str:
        """The quoted, qualified name of the table."""
        return f"{identifier(self.schema)}.{identifier(self.table)}"

    def statements(self) -> list[str]:
        """Return the SQL that does it."""
        raise NotImplementedError

    def said(self) -> Sequence[str]:
        """Return what `alembic check` says about it after word and table."""
        raise NotImplementedError

    def to_diff_tuple(self) -> tuple[str, ...]:
        """Return what `alembic check` shows."""
        return (self.word, f"{self.schema}.{self.table}", *self.said())

    def written(self, prefix: str) -> str:
        """Return the line of a migration."""
        shown = []
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            value = list(value) if isinstance(value, tuple) else value
            if field.default is MISSING:
                shown.append(repr(value))
            elif field.name == "schema" or (field.name not in self.memory and value != field.default):
                shown.append(f"{field.name}={value!r}")
        return f"{prefix}{self.word}({', '.join(shown)})"


Made = TypeVar("Made", bound=type[TableOp])


def registered(word: str) -> Callable[[Made], Made]:
    """Make a class an operation of Alembic."""

    def register(made: Made) -> Made:
        made.word = word
        Operations.register_operation(word, "call")(made)
        Operations.implementation_for(made)(_do)
        renderers.dispatch_for(made)(_write)
        return made

    return register


def _do(operations: Operations, operation: TableOp) -> None:
    for statement in operation.statements():
        operations.execute(statement)


def _write(context: AutogenContext, operation: TableOp) -> str:
    return operation.written(context.opts["alembic_module_prefix"])


@registered("protect_tenant_table")
@dataclass(eq=False)
class ProtectOp(TableOp):
    """Protects a table that exists as `op.tenant_table` protects one that it makes.

    Attributes:
        columns: Its columns that tenants may update; never `tenant_id`, which must be there.
        actions: What tenants may do with their rows.
        owner: A role that nobody logs in as; None leaves the table to its owner.
    """

    table: str
    columns: Sequence[str]
    actions: Sequence[Action] = ALL
    owner: str | None = OWNER
    schema: str = "public"

    def __post_init__(self) -> None:
        checked_actions(self.table, self.actions)

    def statements(self) -> list[str]:
        """Let the groups into the schema, protect the table, hand it over."""
        schema = identifier(self.schema)
        made = [f"GRANT USAGE ON SCHEMA {schema} TO {TENANT}, {POOL}, {OPERATOR}"]
        made += protect(self.qualified, self.columns, actions=self.actions)
        return made if self.owner is None else [*made, hand_over(self.qualified, schema, identifier(self.owner))]

    def said(self) -> Sequence[str]:
        """It has nothing of what protects it."""
        return ("no row level security, no policies, no grants",)

    def reverse(self) -> MigrateOperation:
        """Take the protection away, before the table goes."""
        return UnprotectOp(self.table, self.schema, tuple(self.columns), self.actions)


@registered("unprotect_tenant_table")
@dataclass(eq=False)
class UnprotectOp(TableOp):
    """Takes away what protects a table, and with it every right of tenants; its owner and the schema's rights stay."""

    memory: ClassVar[frozenset[str]] = frozenset(["columns", "actions"])

    table: str
    schema: str = "public"
    columns: Sequence[str] = ()
    actions: Sequence[Action] = ALL

    def statements(self) -> list[str]:
        """Rights go first."""
        made = [f"REVOKE ALL ON TABLE {self.qualified} FROM PUBLIC, {TENANT}, {POOL}, {OPERATOR}"]
        made += [f"DROP POLICY IF EXISTS {policy.name} ON {self.qualified}" for policy in policies()]
        return [*made, f"ALTER TABLE {self.qualified} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY"]

    def said(self) -> Sequence[str]:
        """It is a tenant table in the database alone."""
        return ("no such tenant table is declared",)

    def reverse(self) -> MigrateOperation:
        """Protect it again, once it is there again."""
        return ProtectOp(self.table, self.columns, self.actions, schema=self.schema)


@registered("alter_row_security")
@dataclass(eq=False)
class RowSecurityOp(TableOp):
    """Switches row level security of a table on or off, and for its owner too (forced)."""

    memory: ClassVar[frozenset[str]] = frozenset(["was_enabled", "was_forced"])

    table: str
    enabled: bool
    forced: bool
    schema: str = "public"
    was_enabled: bool = True
    was_forced: bool = True

    def statements(self) -> list[str]:
        """One statement: there is no moment between the two."""
        enable = "ENABLE" if self.enabled else "DISABLE"
        force = "FORCE" if self.forced else "NO FORCE"
        return [f"ALTER TABLE {self.qualified} {enable} ROW LEVEL SECURITY, {force} ROW LEVEL SECURITY"]

    def said(self) -> Sequence[str]:
        """What it is now."""
        pairs = (("enabled", self.was_enabled, self.enabled), ("forced", self.was_forced, self.forced))
        words = [word if was else f"not {word}" for word, was, shall in pairs if was != shall]
        return (f"row level security is {' and '.join(words)}",)

    def reverse(self) -> Self:
        """Switch it back."""
        return type(self)(self.table, self.was_enabled, self.was_forced, self.schema, self.enabled, self.forced)


@dataclass(eq=False)
class PolicyOp(TableOp):
    """A policy of a table, to be made or dropped.

    Attributes:
        roles: Whom it is for; PUBLIC is everybody.
        using: Which rows are seen, in SQL.
        check: Which rows may be written, in SQL.
        command: ALL, SELECT, INSERT, UPDATE or DELETE.
        permissive: False for a floor that all other policies stand on.
    """

    name: str
    table: str
    schema: str = "public"
    roles: Sequence[str] = ("PUBLIC",)
    using: str | None = None
    check: str | None = None
    command: str = "ALL"
    permissive: bool = True

    def __post_init__(self) -> None:
        if self.command not in ("ALL", *ALL):
            raise InvalidSpec("command", self.command, f"one of ALL, {', '.join(ALL)}")

    def said(self) -> Sequence[str]:
        """Its name, and whom it is for."""
        return (f"policy {self.name} TO {', '.join(self.roles)}",)

    def other(self, made: type[PolicyOp]) -> PolicyOp:
        """The same policy, made or dropped."""
        return made(*(getattr(self, field.name) for field in fields(self)))


@registered("create_policy")
class CreatePolicyOp(PolicyOp):
    """Makes a policy."""

    def statements(self) -> list[str]:
        """One statement."""
        kind = "" if self.permissive else "AS RESTRICTIVE "
        roles = ", ".join(map(_role, self.roles))
        using = "" if self.using is None else f" USING ({self.using})"
        check = "" if self.check is None else f" WITH CHECK ({self.check})"
        start = f"CREATE POLICY {identifier(self.name)} ON {self.qualified} {kind}FOR {self.command}"
        return [f"{start} TO {roles}{using}{check}"]

    def reverse(self) -> MigrateOperation:
        """Drop it."""
        return self.other(DropPolicyOp)


@registered("drop_policy")
class DropPolicyOp(PolicyOp):
    """Drops a policy; only its reverse needs to know more than the name."""

    memory: ClassVar[frozenset[str]] = frozenset(["roles", "using", "check", "command", "permissive"])

    def statements(self) -> list[str]:
        """One statement."""
        return [f"DROP POLICY {identifier(self.name)} ON {self.qualified}"]

    def reverse(self) -> MigrateOperation:
        """Make it as it was."""
        return self.other(CreatePolicyOp)


@dataclass(eq=False)
class RightOp(TableOp):
    """Rights of one role on a table, to be given or taken.

    Attributes:
        privileges: Such as SELECT.
        role: A name; PUBLIC is everybody.
        columns: Those they are limited to; none means the whole table.
        grantable: The role may pass them on.
    """

    table: str
    privileges: Sequence[str]
    role: str
    columns: Sequence[str] = ()
    grantable: bool = False
    schema: str = "public"

    def __post_init__(self) -> None:
        wrong = [one for one in self.privileges if not (one.isascii() and one.isalpha() and one.isupper())]
        if wrong or not self.privileges or isinstance(self.privileges, str):
            raise InvalidSpec("privileges", repr(self.privileges), "a list of words such as SELECT")

    @property
    def rights(self) -> str:
        """The privileges in SQL, each with its columns."""
        limit = f" ({', '.join(map(identifier, self.columns))})" if self.columns else ""
        return ", ".join(f"{privilege}{limit}" for privilege in self.privileges)

    def said(self) -> Sequence[str]:
        """The rights and whose."""
        limit = f" ({', '.join(self.columns)})" if self.columns else ""
        option = " WITH GRANT OPTION" if self.grantable else ""
        return (f"{', '.join(self.privileges)}{limit}{option}", self.role)

    def other(self, made: type[RightOp]) -> RightOp:
        """The same rights, given or taken."""
        return made(*(getattr(self, field.name) for field in fields(self)))


@registered("grant_on_table")
class GrantOp(RightOp):
    """Gives rights on a table, or on some of its columns."""

    def statements(self) -> list[str]:
        """One statement."""
        option = " WITH GRANT OPTION" if self.grantable else ""
        return [f"GRANT {self.rights} ON TABLE {self.qualified} TO {_role(self.role)}{option}"]

    def reverse(self) -> MigrateOperation:
        """Take them."""
        return self.other(RevokeOp)


@registered("revoke_on_table")
class RevokeOp(RightOp):
    """Takes rights, also from those whom the role passed them on to; what is taken on a table goes from its columns."""

    def statements(self) -> list[str]:
        """One statement."""
        return [f"REVOKE {self.rights} ON TABLE {self.qualified} FROM {_role(self.role)} CASCADE"]

    def reverse(self) -> MigrateOperation:
        """Give them."""
        return self.other(GrantOp)


def _role(name: str) -> str:
    return name if name == "PUBLIC" else identifier(name)


def hand_over(table: str, schema: str, owner: str) -> str:
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
