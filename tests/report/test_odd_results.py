"""Pages on results that lack a part, are old, odd, hostile or several, and what is no results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import Read, ends, is_sound, needs_nothing, save, three
from project_paths import ROOT
from results_example import STRENGTHS, example, example_seeds, example_strength

from introspection_lit import report
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.utils.errors import ConfigurationError

FULL = ROOT / "docs/results/smollm2-135m/seed-0.json"
OLD = ROOT / "docs/results/quickstart/seed-0.json"
HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(2)> {{ 7 * 7 }} ../../evil & 'x' $\\frac{$"
# What each part of the evidence is shown as.
SHOWN = {
    "curves": "Detection against strength",
    "roc": "ROC",
    "kinds": "Kinds of text",
    "histograms": "Log-odds",
    "training": "Learning",
    "lens": "Where the answer forms",
    "references": "References",
    "side_effects": "Side effects",
    "leaks": "Leak audit",
}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Everything there can be."""
    return example()


@pytest.mark.parametrize("missing", SHOWN)
@pytest.mark.parametrize("how", ["gone", "null"])
def test_without_a_part(results: dict[str, Any], missing: str, how: str) -> None:
    """A section without data is not there; all others are."""
    evidence = {name: part for name, part in results["evidence"].items() if name in SHOWN and name != missing}
    evidence |= {missing: None} if how == "null" else {}
    light = {
        name: evidence[name] for name in evidence if name in ("leaks", "references", "side_effects") or name == missing
    }
    page = report.build_page(report.Run(Path("x"), results | {"evidence": light}, {}, None))
    titles = {section.title for section in page.sections}
    assert SHOWN[missing] not in titles
    assert {SHOWN[name] for name in light if name != missing} <= titles


def test_old_results_are_shown(tmp_path: Path) -> None:
    """No evidence at all: the ladder is there, the rest is said to be missing, and nothing is drawn."""
    results = json.loads(OLD.read_text(encoding="utf-8"))
    older = {name: value for name, value in results.items() if name not in ("evidence", "sha256")}
    (tmp_path / "older.json").write_text(json.dumps(older), encoding="utf-8")
    report.main(["--run", str(tmp_path / "older.json"), "--out", str(tmp_path / "old.html")])
    page = Read((tmp_path / "old.html").read_text(encoding="utf-8"))
    needs_nothing(page)
    is_sound(page)
    assert {path.name for path in tmp_path.iterdir()} == {"old.html", "older.json"}
    assert page.tables["Test sets, from the ground up"]["held-out random"]["TPR"] == three(
        results["sets"]["heldout"]["tpr"]
    )
    assert page.text.count("not measured") >= 3
    assert "0.074 on training vectors, with 48 distinct clean inputs, which is above the limit of 0.05" in page.text


@pytest.mark.parametrize("strengths", [(0.3,), (0.3, 20.0)])
def test_few_strengths(strengths: tuple[float, ...], tmp_path: Path) -> None:
    """One strength, two, and far apart."""
    results = example(strengths=strengths)
    results["evidence"] = {
        name: results["evidence"][name] for name in ("curves", "grid", "kind_grid", "detection_strength")
    }
    results["evidence"]["detection_strength"] = {"random": example_strength(None, [None, None]), "concept": None}
    page = Read(report.write_report(save(tmp_path / "run", results)).read_text(encoding="utf-8"))
    is_sound(page)
    assert "75 % detected at 1 % FPR is not reached on random vectors" in page.text
    assert list(page.tables["TPR by band and strength: random vectors"]["0..9"]) == [f"{s:g}" for s in strengths]


def test_null_strengths_and_rates(results: dict[str, Any]) -> None:
    """Points and cells that nobody measured are left out, and the others are not."""
    changed = json.loads(json.dumps(results))
    evidence = changed["evidence"]
    for lines in evidence["curves"].values():
        lines["untrained"] = [point | {"tpr": None, "auroc_interval": None} for point in lines["untrained"]]
        lines["adapter"][0]["strength"] = None
    for row in evidence["grid"]:
        row["tpr"] = None
    evidence["kinds"][0] |= {"fpr": None, "fpr_interval": None}
    evidence["kinds"][1]["fpr_interval"] = None
    evidence["worst"] = {"fpr": None, "tpr": None, "cell": None}
    figures = report.draw_figures(changed)
    labels = [line.get_label() for line in figures["tpr-random"].figure.axes[0].get_lines()]
    assert "untrained" not in labels
    assert len(figures["tpr-random"].figure.axes[0].get_lines()[labels.index("adapter")].get_xdata()) == len(STRENGTHS) - 1
    assert figures["bands-random"].alt.endswith("nothing was measured.")
    assert len(figures["fpr-kinds"].table.rows) == len(evidence["kinds"]) - 1


@pytest.mark.slow
def test_sixty_kinds() -> None:
    """A row for each, none squeezed."""
    for name, made in report.draw_figures(
        {"evidence": {k: v for k, v in example(extra_kinds=40)["evidence"].items() if "kind" in k}}
    ).items():
        if "kinds" in name:
            assert len(made.figure.axes[0].get_yticks()) == 60
            assert made.figure.get_size_inches()[1] / 60 > 9 / 72 * 1.2


@pytest.mark.slow
def test_hostile_results(tmp_path: Path) -> None:
    """Whatever a file says is text: in the page, in figures and in file names."""
    results = example(strengths=(0.1, 1.0))
    results |= {"command": HOSTILE, "commit": HOSTILE, "base_model": HOSTILE, "strength_unit": HOSTILE, HOSTILE: HOSTILE}
    evidence = results["evidence"]
    for rows in (evidence["kinds"], evidence["kind_grid"], evidence["odd"]):
        rows[0]["kind"] = HOSTILE
    evidence["worst"]["fpr"] = evidence["kinds"][0] | {"fpr": 0.9}
    evidence["controls"][0] |= {"name": HOSTILE, "what": HOSTILE}
    evidence["references"][1]["observer"] = HOSTILE
    evidence["histograms"] = {HOSTILE: evidence["histograms"]["heldout"], "../../x": evidence["histograms"]["heldout"]}
    evidence["roc"] = {"../x": evidence["roc"]["heldout"]}
    evidence["curves"][HOSTILE] = evidence["curves"].pop("concept")
    evidence["leaks"]["vectors"][HOSTILE] = 0.5
    results["sets"][HOSTILE] = results["sets"]["flipped"]
    page = Read(report.write_report(save(tmp_path / "deep/run", results, config_yaml=HOSTILE)).read_text(encoding="utf-8"))
    needs_nothing(page)
    is_sound(page)
    assert page.text.count(HOSTILE) > 10
    assert "49" not in page.headings[0][1]
    written = {path for path in tmp_path.rglob("*") if path.suffix in (".png", ".html")}
    assert {path.parent.relative_to(tmp_path).as_posix() for path in written} == {"deep/run", "deep/run/figures"}


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """NaN and infinity, which Python's JSON allows, count as not measured."""
    text = json.dumps({"sets": {}, "evidence": {"max_fpr_threshold": float("nan"), "lens": None}, "threshold": 1.5})
    page = Read(report.write_report(save(tmp_path / "run", text.replace("1.5", "1e999"))).read_text(encoding="utf-8"))
    is_sound(page)
    assert page.tables["Settings, versions and hardware"]["threshold"]["value"] == "none"


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column for each run, curves of all, and only the settings that differ."""
    first, second = example(0), example(1)
    for results in (first, second):
        results["evidence"] = {k: v for k, v in results["evidence"].items() if k not in ("kind_grid", "grid", "training")}
    second["strengths"] = [0.3, 2.0]
    second["evidence"]["detection_strength"]["random"] = example_strength(None, [0.4, None])
    folders = [save(tmp_path / name / "version_0", results) for name, results in (("a", first), ("b", second))]
    report.main(["--run", str(folders[0]), "--run", str(folders[1] / "results.json")])
    out = folders[0] / "compare.html"
    assert capsys.readouterr().out == f"{out}\n"
    page = Read(out.read_text(encoding="utf-8"))
    needs_nothing(page)
    is_sound(page)
    runs = ["a/version_0", "b/version_0"]
    shown = page.tables["Test sets, a column for each run"]
    for name in ("heldout", "newkinds"):
        cells = shown[f"{RUNGS[name]}: FPR"]
        for run, results in zip(runs, (first, second), strict=True):
            row = results["sets"][name]
            assert cells[run] == f"{three(row['fpr'])} ({ends(row['fpr_interval'])})"
    strengths = page.tables["Strength at which 75 % are detected at 1 % FPR"]["random"]
    assert strengths == {runs[0]: "0.037 (0.031-0.044)", runs[1]: "not reached (0.4 or more)"}
    differing = page.tables["Settings and measured values that differ"]
    assert set(differing) == {"checkpoint", "seed", "strengths"}
    kinds = page.tables["False alarms by kind"]
    for run, results in zip(runs, (first, second), strict=True):
        for row in results["evidence"]["kinds"]:
            assert kinds[row["kind"]][run] == f"{three(row['fpr'])} ({ends(row['fpr_interval'])})"
    assert len(page.tables["ROC: held-out random: highest TPR at an FPR of at most"]["0.01"]) == 2
    assert {path.name for path in (folders[0] / "compare-figures").iterdir()} >= {"tpr-random.png", "fpr-kinds.png"}


def test_seeds_alone(tmp_path: Path) -> None:
    """A folder of several seeds has no results of its own."""
    (tmp_path / "seeds.json").write_text(json.dumps(example_seeds()), encoding="utf-8")
    page = Read(report.write_report(tmp_path).read_text(encoding="utf-8"))
    is_sound(page)
    assert page.tables["Detection strength over seeds"]["random"]["mean"] == "0.038"
    assert "Verdict" not in [title for _, title in page.headings]


def test_same_names_are_told_apart() -> None:
    """By as much of the path as it takes; equal runs by number."""
    runs = [report.Run(Path(f"/x/{name}/results.json"), {}, {}, None) for name in ("a/1", "b/1", "b/2")]
    assert report.run_labels(runs) == ["a/1", "b/1", "b/2"]
    assert report.run_labels(runs[1:]) == ["1", "2"]
    assert len(set(report.run_labels([runs[0], runs[0]]))) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no results.json in it. 'python -m introspection_lit test"),
        ("", "not whole JSON"),
        ('{"sets": {"heldout": {"auroc": 1.0', "Was it cut?"),
        ("[1, 2]", "'sets' is missing"),
        ('{"results": {}}', "'sets' is missing"),
        ('{"sets": {"heldout": {"auroc": "high"}}}', "results of another form"),
        ('{"sets": {}, "evidence": {"kinds": [1]}}', "results of another form"),
        ('{"sets": {}, "evidence": "yes"}', "results of another form"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes | None, said: str) -> None:
    """One line that says what is wrong with which file, and nothing is written."""
    if content is not None:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(SystemExit) as stopped:
        report.main(["--run", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert said in error
    assert str(tmp_path) in error
    assert not (tmp_path / "report.html").exists()


def test_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named as it was typed; so is a place that cannot be written to."""
    with pytest.raises(SystemExit) as stopped:
        report.main(["--run", "no/such/run"])
    assert stopped.value.code == 2
    assert "--run no/such/run: not there" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="not there"):
        report.write_report(tmp_path / "none")
    with pytest.raises(SystemExit) as stopped:
        report.main(["--run", str(OLD), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
