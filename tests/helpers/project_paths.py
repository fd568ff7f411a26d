"""Where the project's files lie, and the configuration of the tests that run the command line."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
CONFIG = str(ROOT / "tests" / "conf" / "tiny.yaml")


def listed_models() -> list[str]:
    """The model types that docs/models.md lists as working."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition(" are refused")[0]
    return [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
