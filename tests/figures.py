"""Figures that a test measured, printed when all have run: also those of a test in a process of its own (xdist)."""

from __future__ import annotations

FIGURE = "figure"
"""Name under which `record_property` takes a figure: `record_property(FIGURE, "9 of 9 seen")`."""
