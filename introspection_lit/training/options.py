"""Defaults of the data options."""

from __future__ import annotations

# Trials in a step of one process, if nobody says.
DEFAULT = 16
# Of the contexts that come with the package: kinds that the threshold is set on, and kinds that only the test sees.
VALIDATION_KINDS = ("csv", "dutch", "java", "reviews")
TEST_KINDS = ("capitals", "italian", "japanese", "latex", "logs", "rust", "turkish", "typos")
# Doubling from far below to well inside what a detector can notice.
DOSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
