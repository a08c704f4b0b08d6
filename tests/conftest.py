"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Examples are no benchmarks: a busy machine is no failure. CI draws the same ones each time, people draw new ones.
settings.register_profile("home", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("home"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "home")
