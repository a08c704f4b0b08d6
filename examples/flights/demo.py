"""`make demo`, from the installed operator on: set-up, Asset and Backfill, live progress, result, what to try next.

It ends with 0 only when everything is as it should be: the Backfill succeeded, and the result has each of the 336,776
flights of the 365 days exactly once.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SYSTEM = "flowstone-system"
"""Namespace of the operator and its embedded Postgres."""

NAMESPACE = "analytics"
BACKFILL = "delays-2013"
IMAGE = "localhost/flowstone-flights:dev"
"""The image that the manifests name; FLIGHTS_IMAGE puts another one in its place."""

FLIGHTS, DAYS = 336_776, 365
"""Rows of the data file, and days that they are spread over."""

SETUP_SECONDS = 300
BACKFILL_SECONDS = 900

TOTALS = "SELECT coalesce(sum(flights), 0), count(DISTINCT flown_on) FROM flights.daily_delay"
BY_CARRIER = """
SELECT carrier, sum(flights), sum(cancelled),
       round((sum(mean_departure_delay * (flights - cancelled)) / nullif(sum(flights - cancelled), 0))::numeric, 1),
       (array_agg(flown_on ORDER BY p95_departure_delay DESC NULLS LAST))[1],
       round(max(p95_departure_delay)::numeric)
FROM flights.daily_delay GROUP BY carrier ORDER BY sum(flights) DESC LIMIT 8
"""

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
        for line in kubectl("apply", "-f", "-", stdin=manifest).splitlines():
            console.print(f"   {line}", style="dim")


@contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    """One step of the demo: its title, and how long it took."""
    begin = time.monotonic()
    console.print(f"\n[bold blue]▶[/] [bold]{title}[/]")
    yield
    console.print(f"   [green]done[/] [dim]in {time.monotonic() - begin:.1f} s[/]")


def set_up(console: Console) -> None:
    """Load the flights, and wait for it."""
    apply(console, "namespace.yaml", "setup.yaml")
    end = time.monotonic() + SETUP_SECONDS
    while not _job_done():
        if time.monotonic() > end:
            raise DemoError(f"the set-up Job did not end within {SETUP_SECONDS} s: {_job_words()}")
        time.sleep(0.3)
    console.print(f"   {kubectl('-n', SYSTEM, 'logs', 'job/flights-setup').strip()}")


def _job_done() -> bool:
    job = json.loads(kubectl("-n", SYSTEM, "get", "job", "flights-setup", "-o", "json"))
    ended = [one["type"] for one in job.get("status", {}).get("conditions", []) if one["status"] == "True"]
    if "Failed" in ended:
        raise DemoError(f"the set-up Job failed: {_job_words()}")
    return "Complete" in ended


def _job_words() -> str:
    pods = kubectl("-n", SYSTEM, "get", "pods", "-l", "job-name=flights-setup")
    command = ["kubectl", "-n", SYSTEM, "logs", "job/flights-setup", "--tail=15"]
    logs = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"\n{pods}{logs.stdout}{logs.stderr}"


def backfill(console: Console) -> None:
    """Ask for the year and watch it."""
    apply(console, "asset.yaml", "backfill.yaml")
    console.file.flush()
    flowstone = Path(sys.executable).with_name("flowstone")
    command = [flowstone, "backfill", "watch", BACKFILL, "-n", NAMESPACE, "--timeout", str(BACKFILL_SECONDS)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise DemoError(
            f"the Backfill did not succeed (exit code {code} of `flowstone backfill watch`); see\n"
            f"  kubectl -n {NAMESPACE} describe backfill {BACKFILL}\n"
            f"  kubectl -n {SYSTEM} logs deployment/flowstone --all-containers"
        )


def query(statement: str) -> list[list[str]]:
    """Ask the embedded Postgres."""
    program = 'PGPASSWORD="$POSTGRES_PASSWORD" exec psql -h 127.0.0.1 -U postgres -d flowstone --csv -t -c "$1"'
    answer = kubectl("-n", SYSTEM, "exec", "flowstone-postgres-0", "--", "sh", "-c", program, "sh", statement)
    return list(csv.reader(answer.splitlines()))


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


def main() -> int:
    """Run the demo; 0 when all of it worked."""
    console = Console(highlight=False)
    try:
        with step(console, "Set-up step: load a year of real flights into Postgres"):
            set_up(console)
        with step(console, "Backfill: delays per day and carrier, 365 days, at most 20 Jobs at a time"):
            backfill(console)
        with step(console, "Result"):
            result(console)
    except DemoError as failure:
        console.print(f"\n[bold red]The demo did not work:[/] {failure}")
        return 1
    console.print(NEXT, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
