"""The worker's log: one line of JSON for each event, on standard output between whatever the user's code prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Protocol, TextIO


class Log(Protocol):
    """Writes one event with its values."""

    def __call__(self, event: str, **values: object) -> None:
        """Write the event."""
        ...


def line_log(stream: TextIO, **bound: object) -> Log:
    """Return a log that writes lines of JSON to a stream, each with the bound values."""

    def log(event: str, **values: object) -> None:
        content = {"time": _now(), "event": event, **bound, **values}
        print(_line(content, stream.encoding or "utf-8"), file=stream, flush=True)

    return log


def _line(content: dict[str, object], encoding: str) -> str:
    """Write the text as it is where the stream can take it: a lone surrogate in an error must end no worker."""
    line = json.dumps(content, ensure_ascii=False, default=str)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(content, default=str)
    return line


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
