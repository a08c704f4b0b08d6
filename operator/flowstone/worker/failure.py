"""A failure in words: what is stored with a partition, shown in the Backfill's status and written to the log."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from types import TracebackType

from flowstone.worker.log import Log

MAX_ERROR_BYTES = 2048
"""Longest error of one partition, in bytes of UTF-8."""

SHORTEST_SECRET = 6
"""Characters from which on a password is taken out of errors; a shorter one would take words out with it."""

_FOREIGN = ("site-packages", "dist-packages")
"""Parts of the paths of code that is not the user's own, as a rule."""

_NOWHERE = (str(PurePath(__file__).parents[1]), "<frozen", importlib.__path__[0])
"""Starts of the paths of code that never is the place of a failure: FlowStone and the import machinery."""


class FunctionError(Exception):
    """Raised when the user's function or program broke a rule or ended badly; its message stands for itself."""


def told(log: Log, partition: str | None, error: BaseException) -> str:
    """Write a failure to the log, with its traceback, and return it in words."""
    words = describe(error)
    cause = error.__cause__ if isinstance(error, FunctionError) else error
    trace = {} if cause is None else {"traceback": "".join(traceback.format_exception(cause))}
    log("partition.error", partition=partition, error=words, **trace)
    return words


def describe(error: BaseException) -> str:
    """Return an exception as `type: message (file:line in function)`, at most 2 KiB."""
    if isinstance(error, FunctionError):
        return clipped(str(error))
    message = _message(error)
    return clipped(f"{type(error).__qualname__}{f': {message}' if message else ''}", _place(error.__traceback__))


def _message(error: BaseException) -> str:
    """Return an exception's own words; one that fails to say them must not end the worker."""
    try:
        return str(error)
    except Exception as second:
        return f"no message, because its __str__ raised {type(second).__qualname__}"


def redacted(text: str) -> str:
    """Return a text without this pod's database password: whoever may read the Backfill reads its errors too."""
    password = os.environ.get("PGPASSWORD", "")
    return text.replace(password, "[PGPASSWORD]") if len(password) >= SHORTEST_SECRET else text


def clipped(text: str, end: str = "") -> str:
    """Return a text that Postgres can store, cut in its middle so that its end is kept."""
    text, end = redacted(text), redacted(end)
    room = MAX_ERROR_BYTES - len(end.encode())
    # Postgres stores no NUL, and UTF-8 no lone surrogate.
    encoded = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(encoded) > room:
        half = (room - 3) // 2
        encoded = encoded[:half] + "…".encode() + encoded[-half:]
    return encoded.decode("utf-8", "ignore") + end


def _place(trace: TracebackType | None) -> str:
    """Return the innermost place in the user's own code, or else the innermost one at all."""
    places = list(_places(trace))
    own = [place for path, place in places if not any(part in path for part in _FOREIGN)]
    return f" ({(own or [place for _, place in places])[-1]})" if places else ""


def _places(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    """Yield path and words of each frame that can be the place of a failure."""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_NOWHERE):
            yield code.co_filename, f"{PurePath(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
