"""Damaged results by the hundred: a page of what they say, or an error that names the file; no number that cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from damage import REFUSED, damaged_bytes, mutated, nested_too_deeply, odd
from hypothesis import event, given, settings
from hypothesis import strategies as st
from project_paths import ROOT
from results_example import example, example_seeds

from introspection_lit import report
from introspection_lit.report.result_files import read_results
from introspection_lit.tools.several_seeds import seed_tables, summarise_seeds
from introspection_lit.utils.checksums import with_checksum
from introspection_lit.utils.errors import ConfigurationError

pytestmark = pytest.mark.thorough

SHARES = ("auroc", "accuracy", "tpr", "fpr", "mass", "tpr_at_1pct_fpr")
COUNTS = ("n", "n_clean", "n_steered", "n_clean_distinct", "alarms")


def short(part: Any, name: str = "") -> Any:
    """The same results with three of everything."""
    if isinstance(part, dict):
        return {key: short(value, key) for key, value in part.items()}
    return [short(value) for value in part[: 4 if name == "edges" else 3]] if isinstance(part, list) else part


WHOLE, SHORT, SEEDS = example(), short(example()), example_seeds()
ONCE = settings(max_examples=max(10, settings().max_examples // 10))


def save(folder: Path, content: Any, name: str = "results.json") -> Path:
    """A file as Python's own writer has it, with NaN and half letters."""
    (folder / name).write_text(json.dumps(content))
    return folder / name


def can_be(part: Any) -> bool:
    """Whether every rate and count, wherever it lies, is one: told by its name alone."""
    if isinstance(part, list):
        return all(map(can_be, part))
    if not isinstance(part, dict):
        return True
    for name, value in part.items():
        listed = value if isinstance(value, list) else [value]
        numbers = [v for v in listed if v is not None and not isinstance(v, dict)]
        if name.removesuffix("_interval") in SHARES and not all(
            isinstance(v, int | float) and 0 <= v <= 1 for v in numbers
        ):
            return False
        if name in COUNTS and not all(type(v) is int and v >= 0 for v in numbers):
            return False
    return all(map(can_be, part.values()))


@given(content=mutated(SHORT))
def test_results_with_something_wrong(content: Any, tmp_path: Path) -> None:
    """What is read has rates from 0 to 1 and counts, no NaN, and can be written again."""
    file = save(tmp_path, content)
    try:
        found = read_results(file)
    except REFUSED as error:
        event("refused")
        assert str(file) in str(error)  # noqa: PT017 - either way is right
        assert len(str(error)) < 3000  # noqa: PT017
        return
    shown = found.get("evidence") or {}
    assert can_be(found["sets"])
    assert can_be({name: shown.get(name) for name in ("curves", "grid", "kinds", "odd", "references", "controls")})
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


def one_part(name: str) -> st.SearchStrategy[Any]:
    """Results with one part of the evidence, and something wrong in it: figures of all would take seconds."""
    return mutated({name: SHORT["evidence"][name]}, most=1).map(lambda part: {"sets": {}, "evidence": part})


@ONCE
@given(content=st.sampled_from(sorted(SHORT["evidence"])).flatmap(one_part))
def test_pages_of_results_with_something_wrong(content: Any, tmp_path: Path) -> None:
    """Drawn and written: a whole page without NaN, or no page at all."""
    save(tmp_path, content)
    try:
        page = report.write_report(tmp_path)
    except REFUSED as error:
        event("refused")
        assert "results.json" in str(error)  # noqa: PT017 - either way is right
        return
    text = page.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")
    assert ">nan<" not in text.lower()
    page.unlink()


@given(content=st.data())
def test_results_of_damaged_bytes(content: st.DataObject, tmp_path: Path) -> None:
    """With a seal: what was written, or refused."""
    good = json.dumps(with_checksum(SHORT)).encode()
    (tmp_path / "results.json").write_bytes(content.draw(damaged_bytes(good)))
    try:
        found = read_results(tmp_path / "results.json")
    except REFUSED as error:
        event("refused")
        assert "results.json" in str(error)  # noqa: PT017 - either way is right
        return
    assert {name: value for name, value in found.items() if name != "sha256"} == SHORT


@given(first=mutated(SHORT))
def test_several_seeds_with_something_wrong(first: Any, tmp_path: Path) -> None:
    """Put together, numbers of every seed are finite or missing; else it is refused, with the name of the file."""
    files = [save(tmp_path, content, f"{number}.json") for number, content in enumerate((first, SHORT))]
    try:
        found = summarise_seeds("x", {number: (str(file), read_results(file)) for number, file in enumerate(files)})
    except REFUSED as error:
        event("refused")
        assert any(str(file) in str(error) for file in files)  # noqa: PT017 - either way is right
        return
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    seed_tables(found)


@given(content=mutated(SEEDS))
def test_seeds_with_something_wrong(content: Any, tmp_path: Path) -> None:
    """What is said of several seeds, in a folder that has nothing else."""
    save(tmp_path, content, "seeds.json")
    try:
        run = report.load_run(tmp_path)
    except REFUSED as error:
        event("refused")
        assert "seeds.json" in str(error)  # noqa: PT017 - either way is right
        return
    report.render_html(report.build_page(run), {})


@ONCE
@given(content=odd | st.recursive(odd, lambda inner: st.dictionaries(st.sampled_from(["sets", "seeds", "a"]), inner)))
def test_other_json(content: Any, tmp_path: Path) -> None:
    """Any JSON: an empty page at most."""
    save(tmp_path, content)
    try:
        report.write_report(tmp_path)
    except REFUSED:
        event("refused")
        return


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sets": {}, "seed": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"sets": {}, "command": "\\ud800"}', "surrogates not allowed"),
        ('{"sets": {"heldout": {"auroc": null, "tpr": 1, "fpr": 0}}}', "sets.heldout.auroc is missing"),
        (
            '{"sets": {"heldout": {"auroc": 7, "tpr": 1, "fpr": 0}}}',
            "heldout.auroc is 7, expected a number from 0 to 1",
        ),
        ('{"sets": {"odd": null}}', "sets.odd is null"),
        ('{"sets": {"odd": {"n_clean": -3}}}', "sets.odd.n_clean is -3, expected a whole number from 0"),
        ('{"sets": {"odd": {"n_clean": true}}}', "sets.odd.n_clean is True"),
        ('{"sets": {"odd": {"tpr": "0.9"}}}', "sets.odd.tpr is '0.9', expected a number"),
        ('{"sets": {"odd": {"fpr_interval": [0.1]}}}', "sets.odd.fpr_interval is a list of 1, expected a list of 2"),
        (
            '{"sets": {}, "evidence": {"histograms": {"a": {"edges": [2, 1], "clean": [1], "steered": [1]}}}}',
            "do not ascend",
        ),
        (
            '{"sets": {}, "evidence": {"histograms": {"a": {"edges": [0, null, 2], "clean": [1, 2], "steered": [0, 0]}}}}',
            "do not ascend",
        ),
        ('{"sets": {}, "evidence": {"training": {"steps": [1, 2], "auroc": [0.5]}}}', "lists of different lengths"),
        ('{"sets": {}, "threshold": 1e99}', "threshold is 1e\\+99"),
        ('{"sets": {}, "kinds": {"\\u001b[2J": 3}}', r"kinds\.'\\x1b\[2J' is 3"),
    ],
)
def test_faults_that_were_found(content: str, message: str, tmp_path: Path) -> None:
    """Each of these was once a traceback, an error without a reason, or a figure of what cannot be."""
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message) as refused:
        report.write_report(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_deep_nesting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's parser gives up at some depth, with an error that is none of JSON's."""
    (tmp_path / "results.json").write_text('{"sets": {}}')
    nested_too_deeply(monkeypatch)
    with pytest.raises(ConfigurationError, match="not JSON"):
        report.write_report(tmp_path)


def test_nan_is_missing_for_several_seeds(tmp_path: Path) -> None:
    """Once it went into a mean, and then could not be written."""
    for number, auroc in enumerate((0.9, math.nan)):
        sets = {"doses": {"auroc": auroc, "tpr": 1.0, "fpr": 0.0}}
        save(tmp_path, {"sets": sets}, f"{number}.json")
    runs = {number: ("x", read_results(tmp_path / f"{number}.json")) for number in range(2)}
    found = summarise_seeds("x", runs)
    assert found["sets"]["doses"]["auroc"]["mean"] is None
    assert found["sets"]["doses"]["auroc"]["worst_seed"] == 1
    assert found["sets"]["doses"]["tpr"]["mean"] == 1


@pytest.mark.parametrize("how", ["pipe", "folder", "loop", "zeros"])
def test_what_is_no_file(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe that nobody writes to would be waited for, and a device read for ever."""
    import os

    file = tmp_path / "results.json"
    {
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "loop": lambda: file.symlink_to(file),
        "zeros": lambda: file.symlink_to("/dev/zero"),
    }[how]()
    for given_path in (tmp_path, file):
        with pytest.raises(SystemExit) as stopped:
            report.main(["--run", str(given_path)])
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err


def test_sound_results_are_read(tmp_path: Path) -> None:
    """Ours, whole and shortened, and those in the docs."""
    for content in (WHOLE, SHORT):
        assert read_results(save(tmp_path, content)) == content
    docs = ROOT / "docs" / "results"
    for file in (*docs.glob("quickstart/seed-*.json"), *docs.glob("smollm2-135m/seed-*.json")):
        assert read_results(file)["sets"]
    assert read_results(docs / "quickstart" / "controls.json", "rows")["rows"]
    assert read_results(save(tmp_path, SEEDS), "seeds") == SEEDS
