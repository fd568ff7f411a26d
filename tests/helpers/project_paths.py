"""Where the project's files lie, and the configuration of the tests that run the command line."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
CONFIG = str(ROOT / "tests" / "conf" / "tiny.yaml")
