"""Lets `alembic check` and `--autogenerate` see what protects a table, and write what restores it.

What is wanted comes from the metadata: a table whose column `tenant_id` has the default `flowstone.tenant_id()`, or
that is marked with `tenant_info(...)`; also a table of the metadata that the database shows to be a tenant table. The
ledger's own tables are compared with `tenant.wanted`. Predicates are compared in the server's words, as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import ModifyTableOps

from flowstone.db.models import SCHEMA
from flowstone.db.tenant_table_ops import (
    CreatePolicyOp,
    DropPolicyOp,
    GrantOp,
    ProtectOp,
    RevokeOp,
    RowSecurityOp,
    TableOp,
    UnprotectOp,
)
from flowstone.db.tenant_table_rules import COLUMN, check_table
from flowstone.db.tenant_table_shape import OpenKeyOp, OwnerOp, TenantDefaultOp
from flowstone.db.tenant_table_state import Found, Protection, Right, children, find
from flowstone.tenant.protection import ALL, DEFAULT, OPERATOR, OWNER, POOL, TENANT, Action, checked_actions
from flowstone.tenant.wanted import LEDGER, LEDGER_GRANTS, LEDGER_POLICIES, TENANT_POLICIES, WantedPolicy

MARK = "flowstone.tenant_table"
"""Key in a table's `info` with what tenants may do."""

_COMMANDS = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}


def tenant_info(actions: Sequence[Action] = ALL) -> dict[str, Any]:
    """Return the `info` of a table in the metadata that `op.tenant_table(..., actions=...)` makes.

    Raises:
        InvalidSpec: Something else than SELECT, INSERT, UPDATE or DELETE is among it.
    """
    return {MARK: checked_actions("tenant_info", actions)}


@comparators.dispatch_for("table", qualifier="postgresql")
def compare_protection(
    context: AutogenContext,
    changes: ModifyTableOps,
    schema: str | None,
    name: str,
    there: sa.Table | None,
    wanted: sa.Table | None,
) -> None:
    """Append what makes a table's protection as it is declared; Alembic calls this for each table."""
    connection, dialect = context.connection, context.dialect
    if connection is None or dialect is None:  # offline, where Alembic compares nothing either
        return
    place = (schema or dialect.default_schema_name or "public", name)
    found = find(connection, *place) if there is not None else None
    if place[0] == SCHEMA and name != "canary":
        if found is not None and wanted is not None:
            # The operator runs the ledger; only what others may do there is declared.
            others = frozenset(one for one in found.rights if one.role != OPERATOR)
            changes.ops.extend(_differences(place, _of_ledger(name), replace(found, rights=others)))
    elif wanted is None:
        if found is not None and found.marked and place[0] != SCHEMA:
            changes.ops.append(_unprotect(place, found))
    elif MARK in wanted.info or _marked(wanted) or (found is not None and found.marked):
        changes.ops.extend(_of_tenants(place, wanted, found))
        known = {(table.schema or dialect.default_schema_name, table.name) for table in wanted.metadata.tables.values()}
        for child in children(connection, *place):
            if child not in known:
                changes.ops.extend(_of_child(child, find(connection, *child), wanted))


def _marked(table: sa.Table) -> bool:
    default = table.c[COLUMN].server_default if COLUMN in table.c else None
    return isinstance(default, sa.DefaultClause) and DEFAULT in str(default.arg)


def _of_tenants(place: tuple[str, str], table: sa.Table, found: Found | None) -> Iterator[TableOp]:
    check_table(table)
    if found is not None and found.child:
        yield from _of_child(place, found, table)
        return
    columns = [column.name for column in table.c if column.name != COLUMN and column.computed is None]
    actions = table.info.get(MARK, ALL)
    if found is None or found.bare:
        yield ProtectOp(place[1], columns, tuple(actions), OWNER if found is None else None, place[0])
        return
    yield from _shape(place, found)
    known = {COLUMN, *columns}
    seen = frozenset(one for one in found.rights if one.column is None or one.column in known)
    yield from _differences(place, declared(columns, actions), replace(found, rights=seen))


def _shape(place: tuple[str, str], found: Found) -> Iterator[TableOp]:
    """What no grant or policy says: whose table it is, where `tenant_id` comes from, with what keys begin."""
    schema, table = place
    if found.owner_is_tenants:
        yield OwnerOp(table, OWNER, schema, found.owner)
    if found.default != DEFAULT:
        yield TenantDefaultOp(table, DEFAULT, schema, found.default)
    for key in found.open_keys:
        yield OpenKeyOp(table, key, schema)


def _of_child(place: tuple[str, str], found: Found, table: sa.Table) -> Iterator[TableOp]:
    """A partition needs no policies and no grants of its own; it has none but its parent's."""
    columns = [column.name for column in table.c if column.name != COLUMN]
    parent = declared(columns, table.info.get(MARK, ALL))
    wanted = Protection(True, True, found.policies & parent.policies, found.rights & parent.rights)
    yield from _differences(place, wanted, found)


def declared(columns: Sequence[str], actions: Sequence[Action]) -> Protection:
    """Return how a tenant table is protected, as the catalogue shows it."""
    checked_actions("tenant_info", actions)
    rights = {Right(OPERATOR, privilege) for privilege in ("SELECT", "DELETE")}
    for role in (TENANT, POOL):
        rights |= {Right(role, action) for action in actions if action != "UPDATE"}
        rights |= {Right(role, "UPDATE", column) for column in columns if "UPDATE" in actions}
    return Protection(True, True, frozenset(TENANT_POLICIES), frozenset(rights))


def _of_ledger(name: str) -> Protection:
    rights = {
        Right(one.role, one.privilege, column)
        for one in LEDGER_GRANTS
        if one.table == name
        for column in (one.columns or (None,))
    }
    policies = {replace(one, table="") for one in LEDGER_POLICIES if one.table == name}
    return Protection(name in LEDGER, name in LEDGER, frozenset(policies), frozenset(rights))


def _unprotect(place: tuple[str, str], found: Found) -> UnprotectOp:
    actions = tuple(
        one for one in ALL if any(right.role == TENANT and right.privilege == one for right in found.rights)
    )
    return UnprotectOp(place[1], place[0], found.columns, actions)


def _differences(place: tuple[str, str], wanted: Protection, found: Found) -> Iterator[TableOp]:
    """Rights go before anything else and come last, so that nobody has them while policies are missing."""
    schema, table = place
    extra, missing = _rights(wanted, found)
    for role, privileges, columns, grantable in _grouped(extra):
        yield RevokeOp(table, privileges, role, columns, grantable, schema)
    if (found.enabled, found.forced) != (wanted.enabled, wanted.forced):
        yield RowSecurityOp(table, wanted.enabled, wanted.forced, schema, found.enabled, found.forced)
    for policy in _sorted(found.policies - wanted.policies):
        yield DropPolicyOp(policy.name, table, schema, *_meaning(policy))
    for policy in _sorted(wanted.policies - found.policies):
        yield CreatePolicyOp(policy.name, table, schema, *_meaning(policy))
    for role, privileges, columns, grantable in _grouped(missing):
        yield GrantOp(table, privileges, role, columns, grantable, schema)


def _sorted(policies: frozenset[WantedPolicy]) -> list[WantedPolicy]:
    return sorted(policies, key=lambda policy: policy.name)


def _meaning(policy: WantedPolicy) -> tuple[tuple[str, ...], str | None, str | None, str, bool]:
    roles = tuple(policy.roles.split(","))
    return roles, policy.using, policy.check, _COMMANDS[policy.command], policy.permissive


def _rights(wanted: Protection, found: Found) -> tuple[set[Right], set[Right]]:
    """Return which rights are too much and which are to be given; taking one on a table takes it on its columns."""
    extra = set(found.rights - wanted.rights)
    taken = {(one.role, one.privilege) for one in extra if one.column is None}
    kept = {one for one in found.rights & wanted.rights if (one.role, one.privilege) not in taken}
    return extra, set(wanted.rights - kept)


def _grouped(rights: set[Right]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...], bool]]:
    """Put together what one GRANT says: privileges on the table, or one privilege on some columns."""
    whole: dict[tuple[str, bool], list[str]] = defaultdict(list)
    limited: dict[tuple[str, bool, str], list[str]] = defaultdict(list)
    for one in sorted(rights, key=lambda right: (right.role, right.privilege, right.column or "")):
        if one.column is None:
            whole[one.role, one.grantable].append(one.privilege)
        else:
            limited[one.role, one.grantable, one.privilege].append(one.column)
    for (role, grantable), privileges in whole.items():
        yield role, tuple(privileges), (), grantable
    for (role, grantable, privilege), columns in limited.items():
        yield role, (privilege,), tuple(columns), grantable
