"""Waiting for a Backfill, with a live picture on a terminal and a line per change elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from flowstone.cli import view
from flowstone.cli.exits import Exit, of_backfill

Json = Mapping[str, Any]

Show = Callable[[Json], None]


def wait(states: Iterable[Json], show: Show, *, until: datetime | None, clock: Callable[[], datetime]) -> Exit | None:
    """Show each state until the Backfill is over; the exit code that says how it ended, None when it is gone.

    Args:
        states: The Backfill as it is and after each change; the iterable ends when it is deleted.
        until: When to give up, or None.
    """
    for state in states:
        show(state)
        code = of_backfill(state)
        if code is not None:
            return code
        if until is not None and clock() >= until:
            return Exit.TIMEOUT
    return None


@contextmanager
def picture(console: Console) -> Iterator[Show]:
    """What shows a state: redrawn in place on a terminal, and line by line in a pipe or a CI log."""
    if console.is_terminal:
        with _live(console) as show:
            yield show
    else:
        yield Lines(console)


@contextmanager
def _live(console: Console) -> Iterator[Show]:
    last: list[Json] = []

    def draw() -> RenderableType:
        # Drawn anew several times a second, so that ages move between two changes.
        return view.summary(last[0], datetime.now(UTC)) if last else Text("")

    def show(state: Json) -> None:
        last[:] = [state]

    with Live(console=console, get_renderable=draw, refresh_per_second=8, transient=True):
        yield show


class Lines:
    """One line whenever something changed that a reader of a log wants to know: the phase, or five percent."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[object, ...] = ()

    def __call__(self, state: Json) -> None:
        """Print the state, if it differs enough from the one before."""
        status = state.get("status") or {}
        key = (status.get("phase"), status.get("progress", 0) // 5, view.trouble_words(state))
        if key != self._last:
            self._last = key
            self._console.print(_line(state), soft_wrap=True)


def _line(state: Json) -> str:
    status = state.get("status") or {}
    counts = status.get("counts") or {}
    states = ("succeeded", "failed", "running", "queued")
    numbers = ", ".join(f"{counts[name]} {name}" for name in states if counts.get(name))
    trouble = view.trouble_words(state)
    parts = [f"{status['phase']} {status.get('progress', 0)} %" if status.get("phase") else "applied", numbers]
    return f"{state['metadata']['name']}: " + "  ".join(filter(None, [*parts, trouble and ": ".join(trouble)]))
