"""`flowstone bootstrap`: makes the server fit for tenants, once, as a superuser; and reads back what came of it."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from psycopg import sql
from structlog.typing import FilteringBoundLogger

from flowstone.db.connection import Connection, Database, translated, wired
from flowstone.db.context_keys import install_context_keys
from flowstone.errors import LedgerRefused
from flowstone.tenant.hardening import MEASURES, Finding, filled, script, verdict
from flowstone.tenant.signing import ContextKeys
from flowstone.tenant.status import Verdict

_LEDGER = """
    SELECT FROM pg_catalog.pg_class
    WHERE relname = 'tenant' AND relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'flowstone')
"""
"""Asked of the catalogue, which also a login without rights in the schema may read."""


def bootstrap(conninfo: str, *, keys: ContextKeys | None, log: FilteringBoundLogger) -> Verdict:
    """Do every measure, go on after one that is refused, and return what the catalogue shows afterwards.

    Args:
        conninfo: The installer's connection string, to the ledger's database, which is migrated already.
        keys: What signed contexts are checked with; None leaves the keys as they are.
        log: Told what was done, and what was refused.

    Raises:
        LedgerRefused: There is no ledger in this database yet.
        LedgerUnavailable: Postgres does not answer.
    """
    with translated(), psycopg.connect(wired(conninfo, "flowstone-bootstrap"), autocommit=True) as connection:
        if connection.execute(_LEDGER).fetchone() is None:
            raise LedgerRefused(f"database {connection.info.dbname} has no ledger yet: run `flowstone migrate` first")
        database = sql.Identifier(connection.info.dbname).as_string()
        for measure in MEASURES:
            for statement in filled(measure, database):
                _try(connection, statement, measure.name, log)
        if keys is not None and install_context_keys(connection, keys):
            log.info("context-keys-installed", keys=len(keys.keys))
        return read_back(connection)


def printed(conninfo: str) -> str:
    """Return the statements for an administrator to run; connects to nothing.

    Raises:
        LedgerRefused: The connection string names no database.
    """
    name = psycopg.conninfo.conninfo_to_dict(conninfo).get("dbname")
    if not name:
        raise LedgerRefused("url: no database in it: name the ledger's, as in postgresql:///flowstone")
    return script(sql.Identifier(str(name)).as_string())


def read_back(connection: Connection | psycopg.Connection[Any]) -> Verdict:
    """Return what the catalogue shows of every measure; any login may ask."""
    findings = [
        Finding(measure, tuple(sorted(str(row[0]) for row in connection.execute(cast(Any, measure.open)).fetchall())))
        for measure in MEASURES
    ]
    return verdict(findings, connection.info.server_version)


def hardened(database: Database) -> Verdict:
    """Return condition `Hardened`, as the operator sees it."""
    with database.transaction() as tx:
        return read_back(tx.connection)


def _try(connection: psycopg.Connection[Any], statement: str, name: str, log: FilteringBoundLogger) -> None:
    try:
        connection.execute(cast(Any, statement))
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        log.warning("measure-refused", measure=name, server=str(error).splitlines()[0])
