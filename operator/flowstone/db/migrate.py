"""Brings the ledger to this code's schema: roles, schema, revisions, the operator's password. Safe to run at once.

Every replica's init container runs this, so several do at the same time. Who holds the lock on
`flowstone.migration_lock` migrates; the others wait a little, try again, and then find nothing to do. An advisory
lock would not do, since any login may take it and keep it.

Revisions run as the installer, with `row_security = off`: under FORCE ROW LEVEL SECURITY an UPDATE by the owner would
touch no row and say nothing; so set, it fails instead, unless the installer may bypass it. A revision that
has to change rows wraps itself in `unforced(...)`, which works for either. What the installer made is
handed to `flowstone_owner` in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from psycopg import errors as pg
from psycopg import sql
from sqlalchemy.exc import DBAPIError
from structlog.typing import FilteringBoundLogger

from flowstone.db import schema
from flowstone.db.connection import Connection, translated, wired
from flowstone.db.context_keys import install_context_keys
from flowstone.db.passwords import apply_verifier, scram_verifier
from flowstone.db.roles import NAMESPACES, OPERATOR, POOL, TENANTS, ensure_roles
from flowstone.tenant.signing import ContextKeys

APPLICATION_NAME = "flowstone-migrate"

LOCK_TIMEOUT = "5s"
"""Longest wait for a table in one try: while we wait, everybody else queues up behind us."""

TRIES = 30
"""Tries before migrating is given up; with a second between them and 5 s in each, up to three minutes."""

PAUSE_SECONDS = 1.0

_LOST_A_RACE = (
    pg.LockNotAvailable,
    pg.DeadlockDetected,
    pg.UniqueViolation,
    pg.DuplicateSchema,
    pg.DuplicateTable,
    pg.InternalError_,  # "tuple concurrently updated", from ALTER ROLE and GRANT
)
"""What two concurrent migrations do to each other, and what passes."""

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS flowstone AUTHORIZATION flowstone_owner;
CREATE TABLE IF NOT EXISTS flowstone.migration_lock (
    singleton boolean NOT NULL CONSTRAINT migration_lock_pkey PRIMARY KEY
);
"""

_HAND_OVER = """
DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT 'ALTER TABLE ' || c.oid::regclass || ' OWNER TO flowstone_owner' AS statement
        FROM pg_class AS c
        WHERE c.relnamespace = 'flowstone'::regnamespace AND c.relkind IN ('r', 'p', 'v')
          AND c.relowner <> 'flowstone_owner'::regrole
        UNION ALL
        SELECT 'ALTER FUNCTION ' || p.oid::regprocedure || ' OWNER TO flowstone_owner'
        FROM pg_proc AS p
        WHERE p.pronamespace = 'flowstone'::regnamespace AND p.proowner <> 'flowstone_owner'::regrole
    LOOP
        EXECUTE item.statement;
    END LOOP;
END
$$
"""


def migrate(
    conninfo: str,
    *,
    operator_password: str | None,
    keys: ContextKeys | None = None,
    log: FilteringBoundLogger,
    sleep: Callable[[float], None] = time.sleep,
    tries: int = TRIES,
    lock_timeout: str = LOCK_TIMEOUT,
) -> None:
    """Bring roles and schema to this code's revision; does nothing where nothing is to do.

    Args:
        conninfo: The installer's connection string or URI; a superuser, or a login with CREATEROLE that may create
            in this database.
        operator_password: The password `flowstone_operator` shall have from now on; None leaves it as it is.
        keys: What signed contexts are checked with; None leaves the keys as they are.
        log: Told what was done.
        sleep: Waits so many seconds between two tries.
        tries: Tries of each step before another session's lock is given up on.
        lock_timeout: Longest wait for a lock within one try.

    Raises:
        LedgerUnavailable: Postgres does not answer.
        LedgerBusy: Another session held a lock through all tries.
        LedgerRefused: The installer lacks a right; the message names it.
    """
    with translated(), psycopg.connect(wired(conninfo, APPLICATION_NAME), autocommit=True) as connection:
        _persist(partial(_prepare, connection, log), sleep, tries)
        _persist(partial(_upgrade, conninfo, log, lock_timeout), sleep, tries)
        if operator_password is not None:
            verifier = scram_verifier(operator_password)
            _persist(partial(apply_verifier, connection, OPERATOR, verifier), sleep, tries)
            log.info("operator-password-set", role=OPERATOR)
        if keys is not None and install_context_keys(connection, keys):
            log.info("context-keys-installed", keys=len(keys.keys))


def _persist(step: Callable[[], None], sleep: Callable[[float], None], tries: int) -> None:
    """Run a step again as long as it loses against a concurrent one."""
    for _ in range(tries - 1):
        try:
            return step()
        except _LOST_A_RACE:
            sleep(PAUSE_SECONDS)
    return step()


def _prepare(connection: Connection, log: FilteringBoundLogger) -> None:
    """Roles, the schema, and the right to connect and to look inside."""
    ensure_roles(connection, log)
    with connection.transaction():
        connection.execute(_SCHEMA)
        connection.execute(_HAND_OVER)
        everybody = sql.SQL(", ").join(map(sql.Identifier, (OPERATOR, POOL, NAMESPACES, TENANTS)))
        database = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, everybody))
        connection.execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(database, sql.Identifier(OPERATOR)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA flowstone TO {}").format(everybody))


def _upgrade(conninfo: str, log: FilteringBoundLogger, lock_timeout: str) -> None:
    """Run the revisions that are missing, all in one transaction."""
    engine = engine_for(conninfo)
    try:
        with engine.begin() as connection:
            lock_for_migration(connection, lock_timeout)
            before = _revision(connection)
            if before is not None and int(before) > schema.head():  # an older release beside or after a newer one
                log.info("ledger-newer", now=before, head=schema.head())
                return
            command.upgrade(config(connection), "head")
            connection.exec_driver_sql(_HAND_OVER)
            log.info("ledger-migrated", before=before, now=_revision(connection))
    except DBAPIError as error:
        raise error.orig if isinstance(error.orig, psycopg.Error) else error from None
    finally:
        engine.dispose()


def lock_for_migration(connection: sqlalchemy.Connection, lock_timeout: str = LOCK_TIMEOUT) -> None:
    """Take the owner's lock until the transaction ends, and make silent row security loud."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{lock_timeout}'")
    connection.exec_driver_sql("SET LOCAL row_security = off")
    connection.exec_driver_sql("LOCK TABLE flowstone.migration_lock IN ACCESS EXCLUSIVE MODE")


def _revision(connection: sqlalchemy.Connection) -> str | None:
    if connection.exec_driver_sql("SELECT to_regclass('flowstone.alembic_version')").scalar() is None:
        return None
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM flowstone.alembic_version").scalar()
    return revision


def engine_for(conninfo: str) -> sqlalchemy.Engine:
    """An engine over libpq's connection string, for Alembic alone; it pools nothing."""
    connect = partial(psycopg.connect, wired(conninfo, APPLICATION_NAME))
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.NullPool)


def config(connection: sqlalchemy.Connection | None = None) -> Config:
    """Alembic's configuration, without an ini file; `connection` is the one its commands shall use."""
    configuration = Config()
    configuration.set_main_option("script_location", str(schema.migrations()).replace("%", "%%"))
    configuration.attributes["connection"] = connection
    return configuration


@contextmanager
def unforced(execute: Callable[[str], object], *tables: str) -> Iterator[None]:
    """Lift FORCE from tables while a revision changes their rows, for installers without BYPASSRLS.

    Args:
        execute: Runs one statement in the revision's transaction, such as `op.execute`.
        tables: Names inside schema `flowstone`.
    """
    for table in tables:
        execute(f"ALTER TABLE {schema_table(table)} NO FORCE ROW LEVEL SECURITY")
    yield
    for table in tables:
        execute(f"ALTER TABLE {schema_table(table)} FORCE ROW LEVEL SECURITY")


def schema_table(name: str) -> str:
    """The quoted, qualified name of a table of the ledger."""
    return sql.Identifier("flowstone", name).as_string()
