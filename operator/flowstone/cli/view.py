"""What people see of a Backfill on a terminal; pure, from the resource as Kubernetes hands it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flowstone.cli.bar import bar, legend

Json = Mapping[str, Any]

PHASES = {
    "Succeeded": "bold green",
    "PartlyFailed": "bold red",
    "Failed": "bold red",
    "Blocked": "bold red",
    "Cancelled": "bold magenta",
    "Suspended": "bold yellow",
    "Running": "bold yellow",
    "Planning": "bold cyan",
}

_BAR = 60
_GAP = 2
"""Characters between two columns."""

_NAMES = ("NAMESPACE", "NAME")
_NUMBERS = ("DONE", "TOTAL", "SUCCEEDED", "FAILED", "AGE")
_SPARED = ("NAMESPACE", "PROGRESS", "SUCCEEDED", "TOTAL", "AGE", "FAILED")
"""Columns that a narrow terminal goes without, the first one first; the namespace only where all are of one."""

_DELIVERY = {"ExactlyOnce": "exactly once", "AtLeastOnce": "at least once"}
_TROUBLE = (("Blocked", "True"), ("Stalled", "True"), ("Suspended", "True"), ("Reconciling", "True"))
"""Conditions that ask for attention, the most urgent first; planning says what it waits for."""


def summary(resource: Json, now: datetime) -> RenderableType:
    """Everything about one Backfill: where it stands, what is done, what failed and why."""
    status = resource.get("status") or {}
    parts: list[RenderableType] = [heading(resource, now), *progress(status, now)]
    parts += filter(None, [_intervals(status), _failures(status.get("failures") or []), trouble(resource)])
    return Group(*parts)


def heading(resource: Json, now: datetime) -> Text:
    """Name, namespace, phase and age in one line."""
    meta, status, spec = resource["metadata"], resource.get("status") or {}, resource.get("spec") or {}
    phase = status.get("phase") or "not seen by the operator yet"
    text = Text.assemble((f"{meta['namespace']}/", "dim"), (meta["name"], "bold"), "  ")
    text.append(phase, style=PHASES.get(phase, "dim"))
    details = [f"asset {spec.get('asset')}", f"age {age(meta.get('creationTimestamp'), now)}"]
    details += [_DELIVERY[status["delivery"]]] if status.get("delivery") in _DELIVERY else []
    return text.append("  " + " · ".join(details), style="dim")


def progress(status: Json, now: datetime) -> list[RenderableType]:
    """The bar with percent, counts, batches and pace; nothing before it is planned."""
    counts = status.get("counts") or {}
    if not counts.get("total"):
        return []
    line = Text.assemble(bar(counts, _BAR), f" {status.get('progress', 0):3d} %")
    below = legend(counts)
    below.append(f"  of {counts['total']:,}".replace(",", " "), style="dim")
    return [line, below, *_pace(status, now)]


def _pace(status: Json, now: datetime) -> list[RenderableType]:
    words = []
    if batches := status.get("activeBatches"):
        words.append(f"{batches} batches open")
    if (rate := status.get("rate")) and words:
        words.append(f"{rate:.0f} partitions a minute")
    if eta := status.get("eta"):
        words.append(f"done in {age(now, _moment(eta['earliest']))} to {age(now, _moment(eta['latest']))}")
    return [Text(", ".join(words), style="dim")] if words else []


def _intervals(status: Json) -> RenderableType | None:
    table = Table.grid(padding=(0, 2))
    for name, colour in (("succeeded", "green"), ("failed", "red")):
        if words := (status.get("summary") or {}).get(name):
            table.add_row(Text(name, style=colour), Text(words))
    return table if table.rows else None


def _failures(failures: Sequence[Json]) -> RenderableType | None:
    if not failures:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    for column in ("FAILED", "ATTEMPTS", "ERROR", "JOB"):
        table.add_column(column, overflow="fold")
    for one in failures:
        error = str(one.get("error", "")).strip().splitlines() or [""]
        table.add_row(one["partition"], str(one.get("attempts", "")), Text(error[-1], style="red"), one.get("job", ""))
    return Group(Text(), table)


def trouble(resource: Json) -> RenderableType | None:
    """The condition that asks for somebody's attention, in its own words; None when all is well."""
    found = trouble_words(resource)
    return Group(Text(), Text.assemble((f"{found[0]}: ", "bold red"), found[1])) if found else None


def trouble_words(resource: Json) -> tuple[str, str] | None:
    """Reason and message of that condition."""
    by_type = {one.get("type"): one for one in (resource.get("status") or {}).get("conditions") or []}
    for kind, bad in _TROUBLE:
        condition = by_type.get(kind) or {}
        if condition.get("status") == bad:
            return str(condition.get("reason")), str(condition.get("message", ""))
    return None


def listing(resources: Sequence[Json], now: datetime, width: int) -> RenderableType:
    """One line per Backfill, in so many characters: columns are left out for that, and names go on in the next line."""
    rows = [_cells(one, now) for one in resources]
    shown = _fitting(rows, width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in shown:
        justify: Literal["left", "right"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in _NAMES)
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    return table


def _cells(resource: Json, now: datetime) -> dict[str, Text]:
    """The columns in their order."""
    meta, status = resource["metadata"], resource.get("status") or {}
    counts, phase = status.get("counts") or {}, status.get("phase") or ""
    planned = bool(counts.get("total"))
    return {
        "NAMESPACE": Text(meta["namespace"]),
        "NAME": Text(meta["name"]),
        "PHASE": Text(phase, style=PHASES.get(phase, "")),
        "PROGRESS": bar(counts, 12) if planned else Text(""),
        "DONE": Text(f"{status.get('progress', 0)} %" if planned else ""),
        **{state.upper(): Text(str(counts.get(state, ""))) for state in ("total", "succeeded", "failed")},
        "AGE": Text(age(meta.get("creationTimestamp"), now)),
    }


def _fitting(rows: Sequence[Mapping[str, Text]], width: int) -> list[str]:
    """The columns that there is room for."""
    shown = list(rows[0])
    one_namespace = len({row["NAMESPACE"].plain for row in rows}) == 1
    for column in _SPARED if one_namespace else _SPARED[1:]:
        if sum(_wide(rows, each) for each in shown) - _GAP <= width:
            break
        shown.remove(column)
    return shown


def _wide(rows: Sequence[Mapping[str, Text]], column: str) -> int:
    return max(len(column), *(row[column].cell_len for row in rows)) + _GAP


def age(since: str | datetime | None, now: datetime) -> str:
    """How long ago, in the two largest units: 45s, 3m 20s, 5h 10m, 4d 2h."""
    if since is None:
        return "?"
    seconds = max(0, int((now - _moment(since)).total_seconds()))
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size}{unit}" + (f" {rest}{small}" if rest else "")
    return f"{seconds}s"


def _moment(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).astimezone(UTC)
