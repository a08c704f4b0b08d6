"""The embedded database with what tenants need besides the ledger: a key for signed contexts and a pooled login."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import structlog
from structlog.typing import FilteringBoundLogger

from flowstone.db.connection import translated
from flowstone.db.context_keys import install_context_keys
from flowstone.db.embedded import EmbeddedPostgres, start_embedded
from flowstone.tenant.signing import ContextKeys

APP = "flowstone_app"
"""The pooled login of the embedded database; it has no password, the socket lets in one account only."""

KEY_FILE = "context.key"
"""Lies beside the data, mode 0600."""

_MAKE_APP = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{APP}') THEN
        CREATE ROLE {APP} LOGIN IN ROLE flowstone_pool;
    END IF;
END $$
"""


@dataclass(frozen=True, slots=True)
class Home:
    """A running embedded database and how to reach it; `close` lets go of it."""

    pool_url: str
    operator_url: str
    keys: ContextKeys
    close: Callable[[], None]


def open_home(folder: Path | None, cluster: str) -> Home:
    """Start the embedded database, or join those who use it.

    Args:
        folder: Where its data lies; the user's data directory when left out.
        cluster: Cluster id of the scopes.

    Raises:
        LedgerRefused: The extra `embedded` is not installed.
        LedgerUnavailable: The server did not start.
        UnsafeLogin: The key file is not as it should be.
    """
    server = start_embedded(folder, log=_quiet_log())
    try:
        keys = _prepare(server, cluster)
    except BaseException:
        server.close()
        raise
    return Home(server.conninfo(APP), server.conninfo(), keys, server.close)


def _prepare(server: EmbeddedPostgres, cluster: str) -> ContextKeys:
    path = server.folder / KEY_FILE
    with server.exclusively():
        if not path.exists():
            ContextKeys.generate().write(path)
        keys = ContextKeys.from_file(path, cluster)
        with translated(), psycopg.connect(server.installer, autocommit=True) as connection:
            connection.execute(_MAKE_APP)
            install_context_keys(connection, keys)
    return keys


def _quiet_log() -> FilteringBoundLogger:
    """A library says what it did to the standard logging of the program that uses it, and prints nothing."""
    log: FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger("flowstone.embedded"),
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    return log
