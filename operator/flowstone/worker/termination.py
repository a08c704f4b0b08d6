"""Outcomes in a container's termination message, for a worker that has no database.

The message is one line of JSON that starts with its own mark: intervals of positions in the file of keys, and as many
errors as fit. The API server keeps about 3 KiB of it, so a writer stops taking partitions when it is full; what is
not named was not reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

MARK = '{"flowstone":1,'
"""Start of every such message; other programs' messages are left alone."""

MAX_BYTES = 3072
"""Longest message in bytes of UTF-8."""

MAX_POSITIONS = 10_000
"""Positions that a message may name: a batch has no more partitions."""

UNKNOWN_ERROR = "failed; its error did not fit in the termination message, see the pod's log"


def write_positions(outcomes: Mapping[int, str]) -> str | None:
    """Return the message for outcomes by position (error, or "" for success), or None when it does not fit.

    Errors are left out from the last to the first before the message counts as full.
    """
    failed = sorted(position for position, error in outcomes.items() if error)
    content: dict[str, object] = {
        "flowstone": 1,
        "succeeded": _intervals(sorted(position for position, error in outcomes.items() if not error)),
        "failed": _intervals(failed),
    }
    size = _size(content)
    if size > MAX_BYTES:
        return None
    errors: dict[str, str] = {}
    for position in failed:
        size += len(json.dumps({str(position): outcomes[position]}).encode()) + (0 if errors else len(',"errors":{}'))
        if size > MAX_BYTES:
            break
        errors[str(position)] = outcomes[position]
    return _text({**content, "errors": errors} if errors else content)


def read_positions(message: str) -> tuple[tuple[int, str], ...] | None:
    """Return the outcomes of a message by position, or None when it is none of ours or was cut.

    Whoever runs in the container may write anything, so nothing larger than a batch is unfolded.
    """
    if not message.startswith(MARK):
        return None
    try:
        content = json.loads(message)
        errors = content.get("errors", {})
        outcomes = dict.fromkeys(_positions(content["succeeded"]), "")
        for position in _positions(content["failed"]):
            outcomes[position] = str(errors.get(str(position)) or UNKNOWN_ERROR)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return tuple(sorted(outcomes.items()))


def _text(content: Mapping[str, object]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _size(content: Mapping[str, object]) -> int:
    return len(_text(content).encode())


def _intervals(positions: Iterable[int]) -> str:
    """Return ascending positions as text: `0-99,101`."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _positions(text: str) -> Iterator[int]:
    previous = -1
    for run in text.split(",") if text else ():
        first, _, last = run.partition("-")
        start, end = int(first), int(last or first)
        if not previous < start <= end < MAX_POSITIONS:
            raise ValueError(f"{run} is no interval after position {previous}")
        yield from range(start, end + 1)
        previous = end
