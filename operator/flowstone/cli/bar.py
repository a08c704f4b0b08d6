"""A bar whose colours say in which state the partitions are."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

SEGMENTS = {
    "succeeded": "green",
    "skipped": "blue",
    "failed": "red",
    "cancelled": "magenta",
    "running": "yellow",
    "queued": "bright_black",
}
"""State and colour, in the order in which they stand in the bar."""

_FULL = "━"


def bar(counts: Mapping[str, int], width: int) -> Text:
    """The bar of `width` characters (6 or more); a state that has any partition has at least one of them."""
    text = Text()
    for (state, colour), length in zip(SEGMENTS.items(), _lengths(counts, width), strict=True):
        text.append(_FULL * length, style="bright_black" if state == "queued" else f"bold {colour}")
    return text


def legend(counts: Mapping[str, int]) -> Text:
    """The counts in words, in the colours of the bar, zeros left out."""
    parts = [
        Text(f"{counts[state]:,} {state}".replace(",", " "), style=colour)
        for state, colour in SEGMENTS.items()
        if counts.get(state)
    ]
    return Text(" · ", style="dim").join(parts)


def _lengths(counts: Mapping[str, int], width: int) -> list[int]:
    """One character for each state that occurs, the rest in proportion; what rounding leaves goes to the largest."""
    numbers = [counts.get(state, 0) for state in SEGMENTS]
    total = sum(numbers)
    if total == 0:
        return [0] * (len(numbers) - 1) + [width]
    rest = width - sum(1 for number in numbers if number)
    lengths = [1 + number * rest // total if number else 0 for number in numbers]
    lengths[numbers.index(max(numbers))] += width - sum(lengths)
    return lengths
