"""Fields of results: every one that the report reads, and every one that it allows, is in real results."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from project_paths import ROOT

from introspection_lit import report
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.comparison import comparison_page
from introspection_lit.report.shape import SHAPES

FULL = ROOT / "docs/results/smollm2-135m/seed-0.json"
TASKS = ROOT / "docs/results/tasks/seed-0.json"  # of several tasks, which the full experiment does not train
USED = ROOT / "docs/results/quickstart/seed-0.json"  # with the exported adapter and long conversations
DEPLOYED = ROOT / "docs/results/deployment/quickstart.json"  # over changed caches
LENGTHS = ROOT / "docs/results/recipes/dither-5-rank-64.json"  # with rates by length of the context
# What a report asks for that none of them has got.
OPTIONAL = {
    r"sets\.(concept_pca|imported)": "test sets that are measured if a bank has such vectors",
    r"sets\.(halves|lines|comparison|identification|naming)\.\w+": "which part, which concept: nothing is detected there",
    r"sets\.\w+\.(auroc|tpr|mass)_interval": "of the rates of a test set only the FPR has an interval",
}
# What a file may have and none of them has got.
ALLOWED = {
    "mass_interval": "a row may have an interval of each of its rates",
}


class Recorded(dict):
    """Results that write down which of their fields were asked for, and whether they were there.

    Attributes:
        asked: By the place of the field, with ``[]`` for the items of a list: True if any such object had it.
    """

    def __init__(self, content: dict[str, Any], place: str, asked: dict[str, bool]) -> None:
        super().__init__({key: recorded(value, f"{place}{key}", asked) for key, value in content.items()})
        self.place, self.asked = place, asked

    def _ask(self, key: str) -> None:
        place = f"{self.place}{key}"
        self.asked[place] = self.asked.get(place, False) or super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self._ask(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._ask(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The same."""
        self._ask(key)
        return super().get(key, default)


def recorded(value: Any, place: str = "", asked: dict[str, bool] | None = None) -> Any:
    """Nested results, each object in them recorded."""
    asked = {} if asked is None else asked
    if isinstance(value, dict):
        return Recorded(value, f"{place}." if place else "", asked)
    return [recorded(item, f"{place}[]", asked) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("runs", [1, 2])
def test_fields_asked_for_are_fields_of_real_results(runs: int) -> None:
    """A name that no results file has would silently leave out a row, of a page on one run or on several."""
    asked: dict[str, bool] = {}
    for path in (FULL, TASKS, USED, DEPLOYED, LENGTHS):
        full = recorded(json.loads(path.read_text(encoding="utf-8")))
        if runs == 1:
            report.build_page(report.Run(path, full, {}, None))
        else:
            comparison_page({"a": full, "b": full})
        assert len(full.asked) > 50  # it has been asked
        asked |= {place: there or asked.get(place, False) for place, there in full.asked.items()}
    missing = [place for place, there in asked.items() if not there]
    assert [place for place in missing if not any(re.fullmatch(pattern, place) for pattern in OPTIONAL)] == []
    if runs == 2:  # between them they ask for all that is said to be optional
        assert all(any(re.fullmatch(pattern, place) for place in missing) for pattern in OPTIONAL)


def test_fields_allowed_are_fields_of_real_results() -> None:
    """The form of a results file names no field that nothing in a real one has."""

    def names(part: Any) -> set[str]:
        below = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return set(part if isinstance(part, dict) else ()).union(*map(names, below))

    asked, present = set[str](), set[str]()
    for path in (FULL, TASKS, USED, DEPLOYED, LENGTHS):
        content = json.loads(path.read_text(encoding="utf-8"))
        full = recorded(content)
        assert list(SHAPES["sets"](full, "")) == []
        asked |= {place.rpartition(".")[2] for place, there in full.asked.items() if not there}
        present |= names(content)
    assert asked - present - set(RUNGS) == set(ALLOWED)
