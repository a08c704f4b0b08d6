"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.figures import FIGURE

# Examples are no benchmarks: a busy machine is no failure. CI draws the same ones each time, people draw new ones.
settings.register_profile("home", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("home"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "home")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == FIGURE and report.when == "call":
                terminalreporter.write_line(str(value))
