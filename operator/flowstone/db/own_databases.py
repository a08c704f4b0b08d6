"""The databases of tenants of isolation Database: made, looked at, put right and dropped by the operator's login.

Neither CREATE DATABASE nor DROP DATABASE can be part of a transaction, so each step here may break off after any
statement, and is done again from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import errors as pg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from flowstone.db.connection import DEADLINE_SECONDS, LONG_SECONDS, Database, Transaction, lone
from flowstone.db.role_drop import drop_role
from flowstone.db.tenant_export import Source, as_owner
from flowstone.errors import DatabaseUnavailable, LedgerRefused, LedgerUnavailable
from flowstone.tenant import own_database
from flowstone.tenant.observed import OwnDatabase
from flowstone.tenant.own_database import Names
from flowstone.tenant.statements import identifier

_EXISTS = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = %(name)s)"
_ROLE = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(name)s)"

# Read as their owner, see `as_owner`; COPY of a table by its name casts nothing.
_OWNED_TABLES = """
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'
    ORDER BY 1, 2
"""


class OwnDatabases:
    """The databases of tenants.

    Args:
        database: The ledger's, as in `ledger.database`.
        conninfo: Where the operator reaches Postgres.
    """

    def __init__(self, database: Database, conninfo: str) -> None:
        self._database = database
        self._conninfo = conninfo

    def look(self, names: Names, *, inside: bool = True) -> OwnDatabase:
        """Return what there is, and what about it is not as it should be.

        Raises:
            DatabaseUnavailable: It is open to the operator and yet does not answer.
        """
        if not self._exists(names.database):
            return OwnDatabase(exists=False)
        with self._database.transaction() as tx:
            found = _lines(tx, own_database.found_outside(names))
        closed = any(line in found for line in ("too much: nobody may connect", _SHUT_OUT))
        if inside and not closed:
            found += self._inside(names)
        return OwnDatabase(exists=True, open=tuple(found))

    def make(self, names: Names) -> None:
        """Make the owner and the database where they are not there yet, and furnish it."""
        with self._database.transaction() as tx:
            if tx.row(_ROLE, {"name": names.owner}) == (False,):
                tx.run(own_database.make_owner(names))
        if not self._exists(names.database):
            with lone(self._conninfo, LONG_SECONDS) as session:
                session.run("SELECT set_config('statement_timeout', '0', false)")
                session.run(own_database.make_database(names))
        self.restore(names)

    def restore(self, names: Names) -> None:
        """Put right what is not as it should be; does nothing where all is."""
        with self._database.transaction() as tx:
            if _lines(tx, own_database.found_outside(names)):
                tx.run_each(own_database.close(names))
        found = self._inside(names)
        if found:
            with self.inside(names.database) as tx:
                tx.run_each(own_database.furnish(names, found))

    def drop(self, names: Names) -> None:
        """Drop the database with all that is in it, and its owner; the tenant's sessions are over by now."""
        if self._exists(names.database):
            with lone(self._conninfo, LONG_SECONDS) as session:
                session.run("SELECT set_config('statement_timeout', '0', false)")
                owner, database = identifier(names.owner), identifier(names.database)
                session.run_each([f"SET ROLE {owner}", f"DROP DATABASE {database}"])
        with self._database.transaction() as tx:
            drop_role(tx.connection, names.owner)

    def digest(self, names: Names) -> str:
        """Return SHA-256 over all rows of all tables, whatever their order, as evidence of what was deleted."""
        if not self._exists(names.database):
            return hashlib.sha256(b"no database").hexdigest()
        whole = hashlib.sha256()
        with self.inside(names.database, LONG_SECONDS) as tx:
            tx.allow(LONG_SECONDS)
            for schema, table, owner in tx.rows(_OWNED_TABLES):
                whole.update(f"{schema}.{table}:{_sum_of(tx, schema, table, owner):064x}\n".encode())
        return whole.hexdigest()

    def export(self, names: Names, add: Callable[[Transaction, Source], None]) -> None:
        """Hand out all tables of the database, whoever owns them, as of one moment."""
        if not self._exists(names.database):
            return
        with self.inside(names.database, LONG_SECONDS) as tx:
            tx.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for schema, table, owner in tx.rows(_OWNED_TABLES):
                add(tx, Source("own", schema, table, owner=owner))

    @contextmanager
    def inside(self, name: str, seconds: float = DEADLINE_SECONDS) -> Iterator[Transaction]:
        """Yield a transaction in a tenant's database.

        Raises:
            DatabaseUnavailable: It cannot be reached, or broke off.
        """
        try:
            with lone(make_conninfo(self._conninfo, dbname=name), seconds) as tx, tx.connection.transaction():
                yield tx
        except LedgerUnavailable as error:
            reason = str(error).partition(": ")[2] or str(error)
            raise DatabaseUnavailable(f"the tenant's database {name} does not answer: {reason}") from error

    def _exists(self, name: str) -> bool:
        with self._database.transaction() as tx:
            return tx.row(_EXISTS, {"name": name}) == (True,)

    def _inside(self, names: Names) -> list[str]:
        with self.inside(names.database) as tx:
            return _lines(tx, own_database.found_inside(names))


_SHUT_OUT = f"missing: CONNECT TO {own_database.OPERATOR}"


def _lines(tx: Transaction, query: str) -> list[str]:
    return [str(line) for (line,) in tx.rows(query)]


def _sum_of(tx: Transaction, schema: str, table: str, owner: str) -> int:
    """Return the sum of all rows' digests: the same rows give the same number in any order."""
    total = 0
    query = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(schema, table))
    try:
        with as_owner(tx, schema, table, owner), tx.connection.cursor().copy(query) as copy:
            for row in copy:  # the server sends one row at a time
                total += int.from_bytes(hashlib.sha256(row).digest())
    except pg.InsufficientPrivilege as error:
        raise LedgerRefused(f"table {schema}.{table}: row security hides its rows even from its owner") from error
    return total % 2**256
