"""`flowstone` for people: the commands, and how errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version

import typer
from rich.console import Console
from rich.text import Text

from flowstone.cli import backfill, bootstrap, run_local, service, tenant
from flowstone.cli.context_key import context_key
from flowstone.cli.exits import Exit, of_error
from flowstone.errors import FlowStoneError

HELP = "Runs an asset over many partitions as Kubernetes Jobs; the record of what is done lies in Postgres."

NOTES = """Inside a pod: `flowstone work package.module:function` and `flowstone exec -- command`.

Exit codes (docs/operations.md says more):
 0 done, or succeeded
 1 failed partitions, or stalled
 2 command or file makes no sense
 3 cluster or ledger does not answer
 4 the cluster said no, such as not there
 5 cancelled
 6 timed out
 130 interrupted"""


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(name="flowstone", help=HELP, epilog=NOTES, no_args_is_help=True, pretty_exceptions_enable=False)
    app.add_typer(backfill.commands())
    app.add_typer(tenant.commands())
    for command in (run_local.run, service.operator, service.migrate, bootstrap.bootstrap, context_key, version):
        app.command()(command)
    return app


def version() -> None:
    """Print the version."""
    typer.echo(installed_version("flowstone"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code (see `exits`)."""
    try:
        build()(args=None if arguments is None else list(arguments), prog_name="flowstone")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.OK
    except FlowStoneError as error:
        words = Text.assemble(("error: ", "bold red"), str(error))  # no markup: a server's words may have brackets
        Console(stderr=True, highlight=False).print(words, soft_wrap=True)
        return of_error(error)
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
