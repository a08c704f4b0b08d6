"""`flowstone tenant ...`: prove that tenants are kept apart, list them, ask for fresh credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from flowstone.cli.cluster import Cluster
from flowstone.cli.exits import Exit, condition
from flowstone.cli.options import Context, Form, Kubeconfig
from flowstone.cli.output import WIDEST, Output, console, write_all
from flowstone.cli.service import ContextKeyFile, Url
from flowstone.kube import paths
from flowstone.tenant.desired import ROTATE
from flowstone.tenant.proof import Report

Json = Mapping[str, Any]

TenantName = Annotated[str, typer.Argument(help="metadata.name of the Tenant.", show_default=False)]

PROOF_CLUSTER = "flowstone-verify"
"""Canaries of this command are its own, so that it never waits for the operator's."""


def verify(database_url: Url = "", context_key_file: ContextKeyFile = None) -> None:
    """Prove on the real database that no tenant reaches another; exit code 1 when something is open.

    Connects as the operator does (FLOWSTONE_DATABASE_URL or PG*); without the key of signed contexts some attacks are
    left out. Locked logins of canaries stay.
    """
    from flowstone.db.ledger import Ledger  # imported late: drivers are slow to load
    from flowstone.db.proof import verify as prove
    from flowstone.tenant.signing import ContextKeys

    keys = None if context_key_file is None else ContextKeys.from_file(context_key_file)
    with Ledger.connect(database_url, cluster=PROOF_CLUSTER) as ledger:
        ledger.check_schema()
        report = prove(ledger.database, database_url, cluster=PROOF_CLUSTER, keys=keys)
    console().print(shown(report))
    if report.open:
        raise typer.Exit(Exit.FAILED)


def shown(report: Report) -> RenderableType:
    """What people see of a proof."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("CHECKED")
    for column in ("HELD", "OPEN", "LEFT TO HARDENED", "NOT TRIED"):
        table.add_column(column, justify="right")
    for one in report.groups:
        held = one.tried - one.failed - one.admitted - one.skipped
        failed = Text(str(one.failed), style="bold red" if one.failed else "dim")
        table.add_row(one.name, str(max(held, 0)), failed, str(one.admitted), str(one.skipped))
    return Lines(table, *_findings(report), _summary(report))


def _findings(report: Report) -> list[RenderableType]:
    if not report.open:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("OPEN", "REMEDY"):
        table.add_column(column, overflow="fold")
    for one in report.open:
        table.add_row(Text(str(one), style="red"), one.remedy)
    return [Text(), table]


def _summary(report: Report) -> RenderableType:
    suite = f"suite {report.version}, sha256:{report.digest}, at {report.at:%Y-%m-%dT%H:%M:%SZ}"
    if report.open:
        return Text.assemble("\n", ("not proven: ", "bold red"), f"{len(report.open)} open. ", (suite, "dim"))
    return Text.assemble("\n", ("proven: ", "bold green"), f"{report.checks} checks. ", (suite, "dim"))


def list_all(output: Form = Output.TABLE, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """List the cluster's Tenants and what is known of them."""
    found = Cluster.connect(kubeconfig, context=context).list(paths.custom("tenants", None))
    if output is not Output.TABLE:
        write_all(found, output)
    else:
        show(found, console())


def show(tenants: Sequence[Json], on: Console) -> None:
    """Print one line per Tenant, as long as it must be: a name that is cut is none."""
    if tenants:
        on.width = WIDEST  # Rich would cut names; 64 namespaces fit
        on.print(listing(tenants))
    else:
        on.print(Text("no Tenants here", style="dim"))


def listing(tenants: Sequence[Json]) -> RenderableType:
    """One line per Tenant."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("NAME", "ID", "TIER", "ISOLATION", "READY", "HARDENED", "VERIFIED", "NAMESPACES"):
        table.add_column(column)
    for one in tenants:
        spec, name = one.get("spec") or {}, str(one["metadata"]["name"])
        states = [_state(one, kind) for kind in ("Ready", "Hardened", "IsolationVerified")]
        words = (str(spec.get("id") or name), str(spec.get("tier", "basic")), str(spec.get("isolation", "Shared")))
        table.add_row(name, *words, *states, ", ".join(spec.get("namespaces") or []))
    return table


def _state(resource: Json, kind: str) -> Text:
    status = condition(resource, kind)
    return Text(status or "-", style={"True": "green", "False": "bold red"}.get(status, "dim"))


def rotate(name: TenantName, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Ask for fresh credentials of a Tenant, without one failed login."""
    token = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    cluster = Cluster.connect(kubeconfig, context=context)
    cluster.merge(paths.custom("tenants", None, name), {"metadata": {"annotations": {ROTATE: token}}})
    console().print(f"tenant.flowstone.dev/{name}: fresh credentials are asked for; its Secrets change in a moment")


def restore(
    file: Annotated[Path, typer.Argument(help="An export that the operator wrote.", show_default=False)],
    tenant: Annotated[str, typer.Option(help="Id of the tenant to restore it under.", show_default=False)],
    database_url: Url = "",
) -> None:
    """Bring the rows of a deleted tenant back from its export, all or none. Needs a superuser.

    Apply a Tenant first: with the old id in another database, with a new one where the old one was purged.
    """
    from flowstone.db.tenant_export import digest_of  # imported late: drivers are slow to load
    from flowstone.db.tenant_restore import restore as bring_back

    typer.echo(f"sha256:{digest_of(file)}")
    restored = bring_back(database_url, file, tenant)
    for table, rows in restored.rows.items():
        typer.echo(f"{table}: {rows} rows")
    if restored.left:
        typer.echo(f"left in the file: {', '.join(restored.left)}")


def commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(name="tenant", help="Keep organisations apart, and prove it.", no_args_is_help=True)
    group.command()(verify)
    group.command("list")(list_all)
    group.command()(rotate)
    group.command()(restore)
    return group
