"""Keeping a status small: at most 16 KiB, whatever the size of the Backfill and the length of its errors."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

LIMIT = 16 * 1024
"""Bytes of JSON that a status may have; etcd and every watcher pay for each of them at each write."""

_ROOMS = (2_000, 1_000, 500, 250, 125)
"""Bytes that each long text may have, tried in this order until the whole fits."""


def fitted(status: Mapping[str, Any]) -> Json:
    """Return the status with its long texts cut, and failures left out at the end, as far as it must be.

    Args:
        status: A Backfill's status as JSON; texts are condition messages, errors of failures and summaries.
    """
    smaller = dict(status)
    for room in _ROOMS:
        if size(smaller) <= LIMIT:
            return smaller
        smaller = _with_texts_cut(status, room)
    while size(smaller) > LIMIT and smaller.get("failures"):
        smaller["failures"] = smaller["failures"][:-1]
    return smaller


def size(value: object) -> int:
    """Return the bytes of a value as JSON in plain ASCII, the longest way to write it."""
    return len(json.dumps(value))


def cut_to(text: str, room: int) -> str:
    """Return a text, or its beginning and an ellipsis, in at most `room` bytes of JSON."""
    if size(text) <= room:
        return text
    length = bisect_right(range(len(text)), room, key=lambda end: size(f"{text[:end]}…")) - 1
    return f"{text[: max(length, 0)]}…"


def _with_texts_cut(status: Mapping[str, Any], room: int) -> Json:
    smaller = dict(status)
    for key, field in (("conditions", "message"), ("failures", "error")):
        if key in smaller:
            smaller[key] = [entry | {field: cut_to(entry.get(field, ""), room)} for entry in smaller[key]]
    if "summary" in smaller:
        smaller["summary"] = {key: cut_to(text, room) for key, text in smaller["summary"].items()}
    return smaller
