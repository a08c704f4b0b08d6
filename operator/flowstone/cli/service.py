"""`flowstone operator` and `flowstone migrate`: what the chart's containers run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
import typer
from structlog.typing import FilteringBoundLogger

from flowstone.errors import InvalidSpec, LedgerUnavailable
from flowstone.tenant.signing import ContextKeys

PAUSE_SECONDS = 1.0
"""Pause between two tries to reach a Postgres that is not there yet."""

Url = Annotated[str, typer.Option(envvar="FLOWSTONE_DATABASE_URL", help="The ledger; default: libpq's PG* variables.")]

ContextKeyFile = Annotated[
    Path | None,
    typer.Option(envvar="FLOWSTONE_CONTEXT_KEY_FILE", help="Key that contexts of pooled logins are signed with."),
]


def operator() -> None:
    """Run the operator: watch Assets and Backfills, and hand out batches. FLOWSTONE_* variables set it."""
    from flowstone.app import main  # imported late: Kopf takes a second, and no other command needs it

    main()


def migrate(
    database_url: Url = "",
    operator_password_file: Annotated[
        Path | None,
        typer.Option(envvar="FLOWSTONE_OPERATOR_PASSWORD_FILE", help="Password that flowstone_operator shall have."),
    ] = None,
    context_key_file: ContextKeyFile = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a Postgres that is not there yet.")] = 0,
) -> None:
    """Bring the ledger's roles and schema to this version. Safe to run at any time, and by several at once."""
    from flowstone.db.migrate import migrate as migrate_ledger  # imported late: Alembic is slow to load
    from flowstone.telemetry import configure_logging

    configure_logging()
    log: FilteringBoundLogger = structlog.get_logger("flowstone.migrate")
    password = _password(operator_password_file)
    keys = None if context_key_file is None else ContextKeys.from_file(context_key_file)

    def once() -> None:
        migrate_ledger(database_url, operator_password=password, keys=keys, log=log)

    def waiting(error: LedgerUnavailable) -> None:
        log.info("ledger-not-there-yet", error=str(error))

    patiently(once, seconds=wait, waiting=waiting, clock=time.monotonic, sleep=time.sleep)


def patiently(
    step: Callable[[], None],
    *,
    seconds: float,
    waiting: Callable[[LedgerUnavailable], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Do `step`; while the ledger is not there, try again for so many seconds.

    Raises:
        LedgerUnavailable: it was not there in time.
    """
    end = clock() + seconds
    while True:
        try:
            return step()
        except LedgerUnavailable as error:
            if clock() >= end:
                raise
            waiting(error)
        sleep(PAUSE_SECONDS)


def _password(file: Path | None) -> str | None:
    """The password in a file, without the line's end that an editor adds."""
    if file is None:
        return None
    try:
        password = file.read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise InvalidSpec("FLOWSTONE_OPERATOR_PASSWORD_FILE", str(file), f"it cannot be read: {error}") from error
    if not password:
        raise InvalidSpec("FLOWSTONE_OPERATOR_PASSWORD_FILE", str(file), "the file is empty: write the password there")
    return password
