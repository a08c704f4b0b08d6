"""`make demo`, from the installed operator on: set-up, Asset and Backfill, live progress, result, then tenants.

It ends with 0 only when everything is as it should be: the Backfill succeeded, the result has each of the 336,776
flights of the 365 days exactly once, and each airline's own login sees that airline's rows and no others.
"""

import base64
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SYSTEM = "flowstone-system"
"""Namespace of the operator and its embedded Postgres."""

NAMESPACE = "analytics"
BACKFILL = "delays-2013"
MONTHS_BACKFILL = "months-2013"
TENANT_LABEL = "flowstone.dev/tenant"
IMAGE = "localhost/flowstone-flights:dev"
"""The image that the manifests name; FLIGHTS_IMAGE puts another one in its place."""

FLIGHTS, DAYS, MONTHS = 336_776, 365, 12
"""Rows of the data file, and days and months that they are spread over."""

FEATURED = "UA"
"""The airline whose own login is shown by itself."""

SETUP_SECONDS = 300
TENANT_SECONDS = 120
BACKFILL_SECONDS = 900

MOST_LINES = 3
"""Lines of kubectl's answer that are shown for one file."""

TOTALS = "SELECT coalesce(sum(flights), 0), count(DISTINCT flown_on) FROM flights.daily_delay"
BY_CARRIER = """
SELECT carrier, sum(flights), sum(cancelled),
       round((sum(mean_departure_delay * (flights - cancelled)) / nullif(sum(flights - cancelled), 0))::numeric, 1),
       (array_agg(flown_on ORDER BY p95_departure_delay DESC NULLS LAST))[1],
       round(max(p95_departure_delay)::numeric)
FROM flights.daily_delay GROUP BY carrier ORDER BY sum(flights) DESC LIMIT 8
"""

SEEN = """
SELECT count(*), coalesce(string_agg(DISTINCT tenant_id, ' '), ''), coalesce(sum(flights), 0)
FROM flights.airline_months
"""
FLOWN = "SELECT carrier, count(*) FROM flights.flight GROUP BY carrier"
LOGINS = """
while read -r tenant PGUSER PGPASSWORD PGDATABASE; do
    export PGUSER PGPASSWORD PGDATABASE
    printf '%s,' "$tenant"
    psql -h 127.0.0.1 --csv -t -c "$1" </dev/null || exit 1
done
"""
"""Asks the same with one login after the other; passwords come through standard input, which no process list shows."""

NEXT = f"""
[bold]Three things to try next[/]

  [bold]1.[/] Apply the same file again: it is finished, so nothing happens and no Job starts.
     [cyan]kubectl apply -f examples/flights/backfill.yaml[/]
     [cyan]flowstone backfill status -n {NAMESPACE}[/]

  [bold]2.[/] A year with three bad days: it ends as failed in part, and says which days, and why.
     [cyan]flowstone backfill run -f examples/flights/flaky.yaml --wait[/]

  [bold]3.[/] Shoot the operator while it works: nothing is lost, nothing runs twice.
     [cyan]kubectl create -f examples/flights/again.yaml[/]
     [cyan]kubectl -n {SYSTEM} delete pod -l app.kubernetes.io/component=operator[/]
     [cyan]flowstone backfill watch delays-again -n {NAMESPACE}[/]

  `source .cluster/env` and `source .venv/bin/activate` set up your shell; `make cluster-down` ends it all.
"""


class DemoError(Exception):
    """Something is not as it should be; the message says what, and what to do."""


@dataclass(frozen=True)
class View:
    """What a login sees in flights.airline_months: how many rows, which airlines', and how many flights in them."""

    rows: int
    airlines: str
    flights: int


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Call kubectl; its output."""
    done = subprocess.run(["kubectl", *arguments], check=False, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"kubectl {' '.join(arguments)[:100]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def apply(console: Console, *files: str) -> None:
    """`kubectl apply` the example's manifests, with the image that was asked for."""
    for file in files:
        manifest = (HERE / file).read_text("utf-8").replace(IMAGE, os.environ.get("FLIGHTS_IMAGE") or IMAGE)
        lines = kubectl("apply", "-f", "-", stdin=manifest).splitlines()
        more = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        for line in lines[:MOST_LINES] + more:
            console.print(f"   {line}", style="dim")


@contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    """One step of the demo: its title, and how long it took."""
    begin = time.monotonic()
    console.print(f"\n[bold blue]▶[/] [bold]{title}[/]")
    yield
    console.print(f"   [green]done[/] [dim]in {time.monotonic() - begin:.1f} s[/]")


def set_up(console: Console) -> None:
    """Load the flights, and wait for it; a Job of an earlier run makes way, since it may be of an older image."""
    apply(console, "namespace.yaml")
    kubectl("-n", SYSTEM, "delete", "job", "flights-setup", "--ignore-not-found")
    apply(console, "setup.yaml")
    end = time.monotonic() + SETUP_SECONDS
    while not _job_done():
        if time.monotonic() > end:
            raise DemoError(f"the set-up Job did not end within {SETUP_SECONDS} s: {_job_words()}")
        time.sleep(0.3)
    for line in kubectl("-n", SYSTEM, "logs", "job/flights-setup").splitlines():
        console.print(f"   {line}")


def _job_done() -> bool:
    found = kubectl("-n", SYSTEM, "get", "job", "flights-setup", "-o", "json", "--ignore-not-found")
    job = json.loads(found or "{}")
    ended = [one["type"] for one in job.get("status", {}).get("conditions", []) if one["status"] == "True"]
    if "Failed" in ended:
        raise DemoError(f"the set-up Job failed: {_job_words()}")
    return "Complete" in ended


def _job_words() -> str:
    pods = kubectl("-n", SYSTEM, "get", "pods", "-l", "job-name=flights-setup")
    command = ["kubectl", "-n", SYSTEM, "logs", "job/flights-setup", "--tail=15"]
    logs = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"\n{pods}{logs.stdout}{logs.stderr}"


def backfill(console: Console, name: str, *files: str) -> None:
    """Ask for a Backfill and watch it."""
    apply(console, *files)
    console.file.flush()
    flowstone = Path(sys.executable).with_name("flowstone")
    command = [str(flowstone), "backfill", "watch", name, "-n", NAMESPACE, "--timeout", str(BACKFILL_SECONDS)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DemoError(
            f"the Backfill did not succeed (exit code {code} of `flowstone backfill watch`); see\n"
            f"  kubectl -n {NAMESPACE} describe backfill {name}\n"
            f"  kubectl -n {SYSTEM} logs deployment/flowstone --all-containers"
        )


def query(statement: str) -> list[list[str]]:
    """Ask the embedded Postgres, as its superuser."""
    program = 'PGPASSWORD="$POSTGRES_PASSWORD" exec psql -h 127.0.0.1 -U postgres -d flowstone --csv -t -c "$1"'
    return _in_postgres(program, statement)


def _in_postgres(program: str, statement: str, stdin: str = "") -> list[list[str]]:
    command = ["exec", "-i", "flowstone-postgres-0", "--", "sh", "-c", program, "sh", statement]
    return list(csv.reader(kubectl("-n", SYSTEM, *command, stdin=stdin).splitlines()))


def result(console: Console) -> None:
    """Show the result, and compare it with what the data file holds."""
    table = Table(
        title="Departures from New York in 2013 (delays in minutes)", title_justify="left", header_style="bold"
    )
    for column in ("carrier", "flights", "cancelled", "mean delay", "worst day", "its p95 delay"):
        table.add_column(column, justify="left" if column in ("carrier", "worst day") else "right")
    for row in query(BY_CARRIER):
        table.add_row(*row)
    console.print(table)
    ((flights, days),) = query(TOTALS)
    if (int(flights), int(days)) != (FLIGHTS, DAYS):
        raise DemoError(f"the result has {flights} flights on {days} days; the data has {FLIGHTS} on {DAYS}")
    console.print(f"   {int(flights):,} flights on {days} days: every flight of the data, exactly once")


def tenants(console: Console) -> dict[str, dict[str, str]]:
    """Make a Tenant of each airline, and wait for their logins; the content of each one's Secret."""
    apply(console, "tenants.yaml")
    end = time.monotonic() + TENANT_SECONDS
    with console.status("waiting for the Tenants") as status:
        while waiting := [words for found in _tenants() if (words := _unready(found))]:
            if time.monotonic() > end:
                raise DemoError(f"not ready after {TENANT_SECONDS} s: {'; '.join(waiting)}")
            status.update(f"waiting for {len(waiting)} Tenants")
            time.sleep(0.3)
    secrets = _secrets()
    logins = {one["spec"]["id"]: secrets[one["metadata"]["name"]] for one in _tenants()}
    console.print(f"   {len(logins)} Tenants, each with a login of its own in a Secret of {NAMESPACE}")
    return logins


def _tenants() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kubectl("get", "-f", str(HERE / "tenants.yaml"), "-o", "json"))["items"]
    return found


def _unready(tenant: dict[str, Any]) -> str:
    """Why the operator has not made a Tenant's login yet; "" when it has."""
    name, status = tenant["metadata"]["name"], tenant.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    ready = conditions.get("Ready", {})
    if ready.get("status") == "True" and ready.get("observedGeneration") == tenant["metadata"]["generation"]:
        return ""
    return f"{name} ({ready.get('message', 'not seen by the operator yet')})"


def _secrets() -> dict[str, dict[str, str]]:
    """What the Secrets with tenants' credentials hold, by the name of the Tenant."""
    found = json.loads(kubectl("-n", NAMESPACE, "get", "secrets", "-l", TENANT_LABEL, "-o", "json"))["items"]
    return {
        one["metadata"]["labels"][TENANT_LABEL]: {
            key: base64.b64decode(text).decode() for key, text in one["data"].items()
        }
        for one in found
    }


def isolation(console: Console, logins: dict[str, dict[str, str]]) -> None:
    """Show what the airlines' own logins see, and compare it with the flights they flew."""
    variables = ("PGUSER", "PGPASSWORD", "PGDATABASE")
    lines = [" ".join([tenant, *(login[one] for one in variables)]) for tenant, login in logins.items()]
    answers = _in_postgres(LOGINS, SEEN, "\n".join(lines) + "\n")
    seen = {tenant: View(int(rows), whose, int(flights)) for tenant, rows, whose, flights in answers}
    ((rows, whose, flights),) = query(SEEN)
    console.print(_views(seen, View(int(rows), whose, int(flights))))
    wanted = {carrier: View(MONTHS, carrier, int(flights)) for carrier, flights in query(FLOWN)}
    if seen != wanted:
        wrong = sorted(one for one in seen.keys() | wanted.keys() if seen.get(one) != wanted.get(one))
        raise DemoError(f"what these airlines' logins see is not what they flew in 2013: {', '.join(wrong)}")
    total = sum(view.flights for view in seen.values())
    if not total == int(flights) == FLIGHTS:
        raise DemoError(f"the airlines see {total} flights and the superuser {flights}; the data has {FLIGHTS}")
    console.print(f"   {total:,} flights: each seen by its own airline's login, and by no other's")


def _views(seen: dict[str, View], whole: View) -> Table:
    table = Table(title="SELECT ... FROM flights.airline_months", title_justify="left", header_style="bold")
    table.add_column("login")
    for column in ("rows", "airlines", "flights"):
        table.add_column(column, justify="right")
    others = [view for tenant, view in seen.items() if tenant != FEATURED]
    rows = {
        f"{FEATURED}'s own": seen[FEATURED],
        f"the {len(others)} others', added up": View(
            sum(one.rows for one in others),
            " ".join(one.airlines for one in others),
            sum(one.flights for one in others),
        ),
        "superuser": whole,
    }
    for name, view in rows.items():
        airlines = view.airlines.split()
        shown = airlines[0] if len(airlines) == 1 else str(len(airlines))
        table.add_row(name, str(view.rows), shown, f"{view.flights:,}")
    return table


def main() -> int:
    """Run the demo; 0 when all of it worked."""
    console = Console(highlight=False)
    try:
        with step(console, "Set-up step: load a year of real flights into Postgres"):
            set_up(console)
        with step(console, "Backfill: delays per day and carrier, 365 days, at most 20 Jobs at a time"):
            backfill(console, BACKFILL, "asset.yaml", "backfill.yaml")
        with step(console, "Result"):
            result(console)
        with step(console, "Tenants: airlines that share a table, and see their own rows of it alone"):
            logins = tenants(console)
            backfill(console, MONTHS_BACKFILL, "airlines.yaml")
            isolation(console, logins)
    except DemoError as failure:
        console.print(f"\n[bold red]The demo did not work:[/] {failure}")
        return 1
    console.print(NEXT, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
