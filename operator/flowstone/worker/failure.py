"""A failure in words: what is stored with a partition and shown in the Backfill's status."""

from __future__ import annotations

from pathlib import PurePath
from types import TracebackType

MAX_ERROR_BYTES = 2048
"""Longest error of one partition, in bytes of UTF-8."""


class FunctionError(Exception):
    """Raised when the user's function broke a rule; its message stands for itself."""


def describe(error: BaseException) -> str:
    """Return an exception as `type: message (file:line in function)`, at most 2 KiB."""
    if isinstance(error, FunctionError):
        return clipped(str(error))
    message = f": {error}" if str(error) else ""
    return clipped(f"{type(error).__qualname__}{message}", _place(error.__traceback__))


def clipped(text: str, end: str = "") -> str:
    """Return a text that Postgres can store, cut in its middle so that its end is kept."""
    room = MAX_ERROR_BYTES - len(end.encode())
    # Postgres stores no NUL, and UTF-8 no lone surrogate.
    encoded = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(encoded) > room:
        half = (room - 3) // 2
        encoded = encoded[:half] + "…".encode() + encoded[-half:]
    return encoded.decode("utf-8", "ignore") + end


def _place(traceback: TracebackType | None) -> str:
    """Return the innermost place of a traceback, which is where the exception was raised."""
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f" ({PurePath(code.co_filename).name}:{traceback.tb_lineno} in {code.co_name})"
