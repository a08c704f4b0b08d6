"""What a tenant table's definition must keep to: keys that begin with the tenant, numbers that do not run out. Pure.

All tenants draw from the one sequence behind a number: one that a tenant can use up ends everybody's inserts.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from flowstone.errors import InvalidSpec
from flowstone.tenant.protection import LASTING

COLUMN = "tenant_id"

_BIGGEST = 2**63 - 1
_SPENT = "one tenant could use up all of them (see maxvalue, start, increment, cache)"
_KEYS = (
    sa.PrimaryKeyConstraint,
    sa.UniqueConstraint,
    sa.ForeignKeyConstraint,
    postgresql.ExcludeConstraint,
)


def check_key(table: str, key: Sequence[str]) -> None:
    """Refuse a primary key that has nothing beside the tenant.

    Raises:
        InvalidSpec: With `tenant_id` alone each tenant would have a single row.
    """
    if isinstance(key, str) or not key:
        raise InvalidSpec(f"{table}.key", repr(key), "a list of at least one column, such as ['id']")


def check_table(table: sa.Table) -> None:
    """Refuse what would let tenants reach, or stop, one another.

    Raises:
        InvalidSpec: A key or index does not begin with the tenant, or a tenant could use up a column's numbers.
    """
    for constraint in table.constraints:
        if isinstance(constraint, _KEYS):
            label = f"{table.name}.{constraint.name or type(constraint).__name__}"
            _require_first(label, [one.name for one in constraint.columns])
            if isinstance(constraint, postgresql.ExcludeConstraint) and constraint.operators.get(COLUMN) != "=":
                raise InvalidSpec(
                    label, str(constraint.operators), f"({COLUMN!r}, '='): tenants exclude their own rows"
                )
    for index in table.indexes:
        _require_first(f"{table.name}.{index.name}", [getattr(one, "name", str(one)) for one in index.expressions])
    for column in table.columns:
        _check_numbers(f"{table.name}.{column.name}", column)


def _require_first(field: str, names: Sequence[str]) -> None:
    if not names or names[0] != COLUMN:
        raise InvalidSpec(field, ", ".join(names), f"begin with {COLUMN}, or other tenants are reached through it")


def _check_numbers(field: str, column: sa.Column[object]) -> None:
    identity = column.identity
    if identity is None:
        _refuse_sequences(field, column)
        return
    kind = column.type.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy's
    if kind != "BIGINT":
        raise InvalidSpec(field, kind, "sa.BigInteger, or a key that the tenant chooses: one could use up all numbers")
    if identity.cycle:
        raise InvalidSpec(field, "cycle=True", "sa.Identity() without cycle: used numbers would come again, for all")
    if (given := _numbers(identity)) < LASTING:
        raise InvalidSpec(field, f"{max(given, 0)} numbers", f"sa.Identity() with at least 2^53: {_SPENT}")


def _numbers(identity: sa.Identity) -> int:
    """Return how many sessions can draw a number, at worst, until none is left."""
    step = identity.increment or 1
    low = identity.minvalue if identity.minvalue is not None else (1 if step > 0 else -_BIGGEST)
    high = identity.maxvalue if identity.maxvalue is not None else (_BIGGEST if step > 0 else -1)
    first = identity.start if identity.start is not None else (low if step > 0 else high)
    span = high - first if step > 0 else first - low
    return span // (abs(step) * (identity.cache or 1))


def _refuse_sequences(field: str, column: sa.Column[object]) -> None:
    """A sequence beside an identity's is one that tenants would need rights on, and nothing here knows its limits."""
    default = column.server_default
    text = str(getattr(default, "arg", default or "")).lower()
    if isinstance(column.default, sa.Sequence) or isinstance(default, sa.Sequence) or "nextval" in text:
        shown = text if "nextval" in text else "sa.Sequence"
    elif column.autoincrement is True:
        shown = "autoincrement=True"
    else:
        return
    raise InvalidSpec(field, shown, "sa.BigInteger with sa.Identity(): a tenant has no rights on sequences")
