"""Results of strangers: what is shown of them is text, and no file elsewhere is read or written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from pages import Read
from results_example import example

from introspection_lit import report
from introspection_lit.cli import main
from introspection_lit.report import heatmaps
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError

pytestmark = pytest.mark.thorough


def few_figures() -> dict[str, Any]:
    """Results with little to draw, which takes long."""
    results = cast("dict[str, Any]", example())
    for drawn in ("curves", "roc", "heat_maps", "lens", "training", "kinds"):
        results["evidence"].pop(drawn, None)
    return results


def test_links_in_a_runs_folder(tmp_path: Path) -> None:
    """A report shows no file from elsewhere, and writes none there."""
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("a private key")
    (folder / "config.yaml").symlink_to("../elsewhere/secret")
    (folder / "results.json").write_text(json.dumps(few_figures()))
    assert "a private key" not in report.write_report(folder).read_text()
    shutil.rmtree(folder / "figures")
    (folder / "figures").symlink_to("../elsewhere")
    with pytest.raises(IntrospectionError, match="a link to a folder elsewhere"):
        report.write_report(folder)
    assert [path.name for path in elsewhere.iterdir()] == ["secret"]


def test_run_whose_name_is_no_text(tmp_path: Path) -> None:
    """A page that compares it with another shows its bytes."""
    runs = [tmp_path / "a", tmp_path / os.fsdecode(b"r\xff")]
    for folder in runs:
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(few_figures()))
    words = [word for folder in runs for word in ("--run", str(folder))]
    with pytest.raises(SystemExit) as left:
        main(["report", *words, "--out", str(tmp_path / "both.html")])
    assert left.value.code == 0
    assert r"r\udcff" in (tmp_path / "both.html").read_text()


ACTIVE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</script></style></title></pre><iframe src=javascript:alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{",
    "../../../evil",
    "\x1b[31m\u202e<b>",
)


def laced(value: Any, text: str) -> Any:
    """Results with a text in every text."""
    if isinstance(value, dict):
        return {key: laced(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [laced(each, text) for each in value]
    return value + text if isinstance(value, str) else value


def written(folder: Path, text: str) -> set[Any]:
    """Write a report on results with a text in all their texts and names; what of it a browser acts on."""
    folder.mkdir(parents=True)
    results = laced(few_figures(), text)
    evidence = results["evidence"]
    name, histogram = next(iter(evidence["histograms"].items()))
    evidence["histograms"] = {f"{name}{text}": histogram}
    results["sets"][f"heldout{text}"] = results["sets"]["heldout"]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(text)
    report.write_report(folder)
    acted_on = ("href", "src", "style", "http-equiv", "content")
    return {
        (tag, name, str(value)[:22] if name in acted_on else None)
        for tag, attributes in Read((folder / "report.html").read_text()).tags
        for name, value in {"": None, **attributes}.items()
    }


def test_nothing_in_a_report_is_active(tmp_path: Path) -> None:
    """The page has the tags and attributes of one that was made from harmless results, and its files are in its folder."""
    harmless = written(tmp_path / "harmless" / "run", "harmless")
    assert written(tmp_path / "hostile" / "run", " ".join(ACTIVE)) == harmless
    page = (tmp_path / "hostile" / "run" / "report.html").read_text()
    assert page.count("&lt;script&gt;") > 20
    assert "{{ 7 * 7 }}" in page
    assert {path.name for path in (tmp_path / "hostile").iterdir()} == {"run"}
    pictures = list((tmp_path / "hostile").rglob("*.png"))
    assert pictures
    assert {path.parent for path in pictures} == {tmp_path / "hostile" / "run" / "figures"}


def test_tables_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows as columns, from a file of a few kilobytes, would be a page of gigabytes; here the limit is low."""
    monkeypatch.setattr(heatmaps, "MAX_CELLS", 50)
    results = cast("dict[str, Any]", example())
    cell = results["evidence"]["grid"][0]
    results["evidence"]["grid"] = [cell | {"band": [n, n], "strength": 1 + n / 1000} for n in range(8)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigurationError, match="8 rows by 8 strengths are more than a page can show"):
        report.write_report(tmp_path)
