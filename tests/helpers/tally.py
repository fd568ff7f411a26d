"""Counts what became of the generated cases: ``pytest -p tally --tally FILE``, for docs/reliability.md.

A case was refused if one of our errors was made in it, or the command line's parser said what is wrong; any other case that
passed ended right. A case that ends in another exception fails the test, and the run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonargparse
import pytest
from hypothesis.statistics import collector

from introspection_lit.utils.errors import IntrospectionError
from introspection_lit.utils.provenance import provenance

REFUSED = "refused"
ROWS: dict[str, dict[str, int]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file that gets the counts."""
    parser.addoption("--tally", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Note each error of ours, whoever makes it."""
    for owner, name in ((IntrospectionError, "__init__"), (jsonargparse.ArgumentParser, "error")):
        original = getattr(owner, name)

        def noting(*args: Any, original: Any = original, **options: Any) -> Any:
            if hypothesis.currently_in_test_context():
                hypothesis.event(REFUSED)
            return original(*args, **options)

        setattr(owner, name, noting)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the cases of a property, over all its parameters."""

    def note(found: dict[str, Any]) -> None:
        cases = [case for name, phase in found.items() if name.endswith("-phase") for case in phase["test-cases"]]
        row = ROWS.setdefault(item.nodeid.split("[")[0], {"tried": 0, "refused": 0, "right": 0, "failed": 0})
        for case in (case for case in cases if case["status"] in ("valid", "interesting")):
            refused = REFUSED in str(case["events"])
            row["tried"] += 1
            row["failed" if case["status"] == "interesting" else "refused" if refused else "right"] += 1

    with collector.with_value(note):
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the counts, with what made them."""
    made_by = {"command": shlex.join(["python", "-m", "pytest", *map(str, session.config.invocation_params.args)])}
    made_by |= {key: provenance()[key] for key in ("commit", "versions", "hardware")}
    rows = {name: row for name, row in sorted(ROWS.items()) if row["tried"]}
    session.config.getoption("--tally").write_text(json.dumps(made_by | {"properties": rows}, indent=2) + "\n")
