"""`flowstone bootstrap`: make a Postgres server fit for tenants, once, as a superuser."""

from __future__ import annotations

from typing import Annotated

import structlog
import typer
from structlog.typing import FilteringBoundLogger

from flowstone.cli.exits import Exit
from flowstone.cli.service import ContextKeyFile, Url
from flowstone.tenant.signing import ContextKeys


def bootstrap(
    database_url: Url = "",
    print_sql: Annotated[bool, typer.Option(help="Print the SQL for an administrator; connect to nothing.")] = False,
    context_key_file: ContextKeyFile = None,
    tolerate: Annotated[
        bool, typer.Option(help="End with 0 also when something is left open; condition Hardened names it.")
    ] = False,
) -> None:
    """Close what Postgres leaves open to everybody, and read back what came of it. Needs a superuser, once."""
    from flowstone.db.bootstrap import bootstrap as harden  # imported late: drivers are slow to load
    from flowstone.db.bootstrap import printed
    from flowstone.telemetry import configure_logging

    if print_sql:
        typer.echo(printed(database_url))
        return
    configure_logging()
    log: FilteringBoundLogger = structlog.get_logger("flowstone.bootstrap")
    keys = None if context_key_file is None else ContextKeys.from_file(context_key_file)
    found = harden(database_url, keys=keys, log=log)
    typer.echo(f"Hardened: {found.truth} ({found.reason}): {found.message}")
    if found.truth != "True" and not tolerate:
        raise typer.Exit(Exit.FAILED)
