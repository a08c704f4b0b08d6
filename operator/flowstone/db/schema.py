"""Which revision the ledger has, which one this code wants, and where the revisions lie.

Revisions are numbered 0001, 0002, ...; the number of the last one is the code's own version towards the ledger.
Migrations expand first and contract a release later, so newer schemas go on serving older code until
`compatibility.min_operator` says that they do not.
"""

from __future__ import annotations

import re
from pathlib import Path

from psycopg import errors as pg

import flowstone
from flowstone.db.connection import Connection
from flowstone.errors import FlowStoneError, LedgerRefused, SchemaNotCompatible

_REVISION = re.compile(r"^(\d{4})_\w+\.py$")

_SHUT_OUT = """
    SELECT current_user::text FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'flowstone' AND c.relname = 'alembic_version'
      AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))
"""


def migrations() -> Path:
    """The folder of Alembic's environment: inside an installed package, beside `operator/` in a checkout."""
    package = Path(flowstone.__file__).parent
    for folder in (package / "migrations", package.parent.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise FlowStoneError(f"no migrations beside {package}: reinstall flowstone")


def head() -> int:
    """The newest revision this code brings along."""
    names = (_REVISION.match(path.name) for path in (migrations() / "versions").iterdir())
    return max(int(match.group(1)) for match in names if match)


def found(connection: Connection) -> tuple[int, int]:
    """The ledger's revision and the oldest code it lets work on it; (0, 0) when there is no ledger to be seen."""
    query = """
        SELECT v.version_num, c.min_operator
        FROM flowstone.alembic_version AS v CROSS JOIN flowstone.compatibility AS c
    """
    try:
        row = connection.execute(query).fetchone()
    except (pg.UndefinedTable, pg.InvalidSchemaName, pg.InsufficientPrivilege):
        return 0, 0
    return (int(row[0]), int(row[1])) if row else (0, 0)


def require_readable(connection: Connection) -> None:
    """Return unless there is a ledger that this login may not read.

    Raises:
        LedgerRefused: There is one; says whom to connect as.
    """
    row = connection.execute(_SHUT_OUT).fetchone()
    if row is not None:
        raise LedgerRefused(f"login {row[0]} may not read the ledger: connect as flowstone_operator")


def check(revision: int, min_operator: int, code: int) -> None:
    """Raise SchemaNotCompatible when code of revision `code` must not work on this ledger.

    Args:
        revision: The ledger's revision.
        min_operator: The oldest code it lets work on it.
        code: The code's own newest revision.
    """
    if revision < code or min_operator > code:
        raise SchemaNotCompatible(revision, code, min_operator)
