"""What protects a table with tenants' rows: policies, keys, grants; as SQL to apply. Pure.

Policies are per table and never per tenant. Each group has a permissive policy, and a restrictive floor with the same
predicate that cancels a careless `USING (true)` added later. The predicate is an uncorrelated sub-select: the
server evaluates it once per statement, and there is no function and no search path to attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flowstone.errors import InvalidSpec
from flowstone.tenant.statements import identifier

TENANT = "flowstone_tenant"
POOL = "flowstone_pool"
OPERATOR = "flowstone_operator"
OWNER = "flowstone_owner"

OF_LOGIN = "(SELECT s.tenant_id FROM flowstone.login_scope AS s WHERE s.role_name = session_user)"
"""The tenant of a tenant's own login; session_user, because SET ROLE changes only current_user."""

OF_CONTEXT = "(SELECT flowstone.context_tenant())"
"""The tenant of a pooled login's signed context."""

DEFAULT = "flowstone.tenant_id()"
"""A column's default cannot hold a sub-select; row level security checks what it gives."""

Action = Literal["SELECT", "INSERT", "UPDATE", "DELETE"]

ALL: tuple[Action, ...] = get_args(Action)
"""What tenants may do at most: row level security holds back nothing else, such as TRUNCATE."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as the catalogue shows it.

    Attributes:
        predicate: USING and WITH CHECK, which are always the same.
    """

    name: str
    role: str
    predicate: str
    permissive: bool = True


LASTING = 2**53
"""How many numbers the sequence behind a tenant table must have. All tenants draw from it, and a number is gone also
when the transaction rolls back; at a million a second, this many last 285 years."""


def checked_actions(table: str, actions: Sequence[Action]) -> tuple[Action, ...]:
    """Return what tenants may do with a table, if row level security holds all of it.

    Args:
        table: Its name, for the message.
        actions: What was asked for.

    Raises:
        InvalidSpec: Another privilege is among it; TRUNCATE, for one, empties the table of all tenants.
    """
    field, remedy = f"{table}.actions", f"a list of {', '.join(ALL)}: row level security holds back nothing else"
    if isinstance(actions, str):
        raise InvalidSpec(field, actions, remedy)
    for one in actions:
        if one not in ALL:
            raise InvalidSpec(field, one, remedy)
    return tuple(actions)


def policies(column: str = "tenant_id") -> tuple[Policy, ...]:
    """Return the five policies of a tenant table."""
    name = identifier(column)
    login, context = f"{name} = {OF_LOGIN}", f"{name} = {OF_CONTEXT}"
    return (
        Policy("tenant_rows", TENANT, login),
        Policy("tenant_floor", TENANT, login, permissive=False),
        Policy("pool_rows", POOL, context),
        Policy("pool_floor", POOL, context, permissive=False),
        Policy("operator_rows", OPERATOR, "true"),
    )


def protect(table: str, columns: Sequence[str], *, actions: Sequence[Action], column: str = "tenant_id") -> list[str]:
    """Return the statements that protect a table that exists; each can be repeated.

    Args:
        table: Quoted, qualified name.
        columns: Names of its other columns, which may be updated.
        actions: What tenants may do.
        column: The column with the tenant's id.

    Raises:
        InvalidSpec: Tenants would have a right that row level security does not hold back.
    """
    made = [f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"]
    for policy in policies(column):
        kind = "" if policy.permissive else "AS RESTRICTIVE "
        made.append(f"DROP POLICY IF EXISTS {policy.name} ON {table}")
        made.append(
            f"CREATE POLICY {policy.name} ON {table} {kind}FOR ALL TO {policy.role} "
            f"USING ({policy.predicate}) WITH CHECK ({policy.predicate})"
        )
    return [*made, *grants(table, columns, actions=actions)]


def grants(table: str, columns: Sequence[str], *, actions: Sequence[Action]) -> list[str]:
    """Return the statements that give the groups what they may do, and nothing else."""
    made = [f"REVOKE ALL ON TABLE {table} FROM PUBLIC, {TENANT}, {POOL}, {OPERATOR}"]
    words: list[str] = [one for one in checked_actions(table, actions) if one != "UPDATE"]
    if "UPDATE" in actions and columns:
        words.append(f"UPDATE ({', '.join(map(identifier, columns))})")
    if words:
        made.append(f"GRANT {', '.join(words)} ON TABLE {table} TO {TENANT}, {POOL}")
    made.append(f"GRANT SELECT, DELETE ON TABLE {table} TO {OPERATOR}")  # to digest and purge a tenant's rows
    return made
