"""The report: what it shows is what the results say, whatever they say, and it needs nothing but itself."""

from __future__ import annotations

import base64
import json
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Read, ends, three
from project_paths import ROOT
from results_example import LOCATIONS, STRENGTHS, example, example_seeds, example_strength

from introspection_lit import report
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.comparison import comparison_page
from introspection_lit.report.shape import SHAPES
from introspection_lit.utils.errors import ConfigurationError

FULL = ROOT / "docs/results/smollm2-135m/results.json"
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


def save(folder: Path, results: Any, **others: str) -> Path:
    """A run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = results if isinstance(results, str) else json.dumps(results)
    (folder / "results.json").write_text(text, encoding="utf-8")
    for name, other in others.items():
        (folder / name.replace("_", ".")).write_text(other, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Everything there can be."""
    return example()


@pytest.fixture(scope="module")
def folder(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as files, with its report."""
    made = save(
        tmp_path_factory.mktemp("run"), results, seeds_json=json.dumps(example_seeds()), config_yaml="seed: 0  # <b>"
    )
    assert report.write_report(made) == made / "report.html"
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> Read:
    """The report, read."""
    return Read((folder / "report.html").read_text(encoding="utf-8"))


def needs_nothing(page: Read) -> None:
    """Nothing is loaded, nothing is run."""
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert not page.all("object")
    assert "@import" not in page.style
    assert "url(" not in page.style
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,"), (
                tag,
                attributes,
            )
        assert (attributes.get("href") or "#").startswith("#"), attributes


def is_sound(page: Read) -> None:
    """Language, one title, headings in order, links that lead somewhere, tables with headers, pictures in words."""
    assert page.all("html") == [{"lang": "en"}]
    levels = [level for level, _ in page.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {f"#{name}" for name in names} >= {link["href"] for link in page.all("a")}
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for picture in page.all("img"):
        assert any(letter.isdigit() for letter in picture["alt"] or ""), picture["alt"]
    assert "nan" not in page.text.lower().replace("finance", "").split()


def test_page_needs_nothing_and_is_sound(page: Read) -> None:
    """One file, no request, no script, readable by machines."""
    needs_nothing(page)
    is_sound(page)


def test_sections_come_in_order(page: Read) -> None:
    """Verdict first, terms last, everything there that has data."""
    titles = [title for level, title in page.headings if level == 2 and title != "Contents"]
    assert titles[:3] == ["Verdict", "Key numbers", "Test sets"]
    assert titles[-2:] == ["How to repeat", "Terms"]
    places = [titles.index(SHOWN[name]) for name in ("curves", "roc", "kinds", "histograms", "training", "lens")]
    assert places == sorted(places)
    assert {*SHOWN.values(), "Several seeds", "Controls", "Where steering is missed"} <= set(titles)


def test_ladder_shows_the_results(page: Read, results: dict[str, Any]) -> None:
    """Every number of every test set, in its row and column."""
    shown = page.tables["Test sets, from the ground up"]
    assert list(shown) == [RUNGS[name] for name in RUNGS if name in results["sets"]]
    for name, title in RUNGS.items():
        if name in results["sets"]:
            row = results["sets"][name]
            assert shown[title]["AUROC"] == three(row["auroc"])
            assert shown[title]["TPR"] == three(row["tpr"])
            assert shown[title]["FPR"] == f"{three(row['fpr'])} ({ends(row['fpr_interval'])})"
            assert shown[title]["mass"] == three(row["mass"])
            assert shown[title]["clean (distinct)"] == f"{row['n_clean']} ({row['n_clean_distinct']})"
            assert shown[title]["holds"].startswith("✗" if name == "newquestions" else "✓")
    assert list(page.tables["Other test sets"]) == ["doses", "flipped"]


def test_other_tables_show_the_results(page: Read, results: dict[str, Any]) -> None:
    """References, controls, side effects, leaks, seeds, kinds and curves."""
    evidence = results["evidence"]
    controls = page.tables["Controls"]
    for row in evidence["controls"]:
        shown = controls[row["name"]]
        for name in ("auroc", "tpr", "fpr", "recalibrated"):
            assert row[name] is None or three(row[name]) in shown["measured"]
        assert shown["held"] == {True: "✓ held", False: "✗ not held", None: "? not judged"}[row["held"]]
    effects = page.tables["Side effects of the adapter"]
    off, on = (evidence["side_effects"]["factual"][state]["accuracy"] for state in ("off", "on"))
    assert effects["factual questions: accuracy (160)"] == {"off": three(off), "on": three(on), "change": "-0.025"}
    assert page.tables["Largest |cosine| between vectors of two splits"]["train / heldout"]["|cosine|"] == "0.147"
    assert page.tables["What training and test share"]["messages in training and test"]["held"] == "✓ held"
    assert page.tables["Test sets over seeds"]["unseen kinds: FPR"]["worst (seed)"] == "0.031 (2)"
    kinds = page.tables["False alarms by kind"]
    assert len(kinds) == len(evidence["kinds"])
    for row in evidence["kinds"]:
        shown = kinds[row["kind"]]
        assert shown["FPR"] == f"{three(row['fpr'])} ({ends(row['fpr_interval'])})"
        assert shown["alarms"] == f"{row['alarms']} of {row['n_clean']}"
        assert shown["seen"] == ("yes" if row["seen"] else "no")
    curve = page.tables["TPR at 1 % FPR: random vectors, 95 % intervals in brackets"]
    for point in evidence["curves"]["random"]["linear probe"]:
        shown = curve["1.3" if point["strength"] == 1.28 else f"{point['strength']:g}"]
        assert shown["linear probe"] == f"{three(point['tpr'])} ({ends(point['tpr_interval'])})"
    strengths = page.tables["Strength from which on 75 % are detected at 1 % FPR"]
    assert strengths["random, 0..9"]["95 % interval"] == "0.031-0.044"
    assert strengths["concept, 19..28"] == {
        "strength": "not reached",
        "95 % interval": "0.9 or more",
        "missed however strong": "0.010",
    }
    missing = next(row for row in evidence["kind_grid"] if row["tpr"] is None)
    assert page.tables["TPR by kind and strength: random vectors"][missing["kind"]]["0.02"] == "not measured"


def test_references_table(page: Read, results: dict[str, Any]) -> None:
    """The last row of an observer is that of the last set; shares are whole percents."""
    shown = page.tables["The same trials, seen by others"]
    for row in results["evidence"]["references"]:
        if row["set"] == "concept":
            cells = shown[row["observer"]]
            assert cells["AUROC"] == f"{three(row['auroc'])} ({ends(row['auroc_interval'])})"
            share = "not measured" if row["share"] is None else f"{100 * row['share']:.0f} %"
            assert cells["share of the probe's information"] == share


# What a report asks for that the full experiment has not got.
OPTIONAL = {
    r"sets\.(concept_pca|imported)": "test sets that are measured if a bank has such vectors",
    r"sets\.\w+\.(auroc|tpr|mass)_interval": "of the rates of a test set only the FPR has an interval",
}
# What a file may have and the full experiment has not got.
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
    full = recorded(json.loads(FULL.read_text(encoding="utf-8")))
    if runs == 1:
        report.build_page(report.Run(FULL, full, {}, None))
    else:
        comparison_page({"a": full, "b": full})
    assert len(full.asked) > 150  # it has been asked
    missing = [place for place, there in full.asked.items() if not there]
    assert [place for place in missing if not any(re.fullmatch(pattern, place) for pattern in OPTIONAL)] == []
    if runs == 2:  # between them the two ask for all that is said to be optional
        assert all(any(re.fullmatch(pattern, place) for place in missing) for pattern in OPTIONAL)


def test_fields_allowed_are_fields_of_real_results() -> None:
    """The form of a results file names no field that nothing in a real one has."""

    def names(part: Any) -> set[str]:
        below = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return set(part if isinstance(part, dict) else ()).union(*map(names, below))

    content = json.loads(FULL.read_text(encoding="utf-8"))
    full = recorded(content)
    assert list(SHAPES["sets"](full, "")) == []
    asked = {place.rpartition(".")[2] for place, there in full.asked.items() if not there}
    assert asked - names(content) - set(RUNGS) == set(ALLOWED)


@pytest.mark.slow
def test_shipped_results_show_that_the_adapter_says_yes_to_everything(tmp_path: Path) -> None:
    """Every measure of the side effects is in the page, off and on."""
    report.main(["--run", str(FULL), "--out", str(tmp_path / "full.html")])
    page = Read((tmp_path / "full.html").read_text(encoding="utf-8"))
    shown = page.tables["Side effects of the adapter"]
    assert shown["factual questions: says yes"]["on"] == "1.000"
    measured = json.loads(FULL.read_text(encoding="utf-8"))["evidence"]["side_effects"]
    found = {
        "perplexity (64 texts)": ("perplexity", "perplexity"),
        "nats per token": ("perplexity", "nats"),
        "factual questions: accuracy (160)": ("factual", "accuracy"),
        "factual questions: AUROC": ("factual", "auroc"),
        "factual questions: says yes": ("factual", "yes"),
        "factual questions: mass": ("factual", "mass"),
        "factual questions: mean log-odds": ("factual", "log_odds"),
    }
    assert list(shown) == list(found)
    for row, (group, key) in found.items():
        off, on = (measured[group][state][key] for state in ("off", "on"))
        assert shown[row] == {"off": three(off), "on": three(on), "change": format(on - off, "+.3f")}


def test_how_to_repeat(page: Read, results: dict[str, Any]) -> None:
    """Command, config file, commit, seed, versions, hardware, precision and thresholds."""
    assert results["command"] in page.text
    assert "seed: 0  # <b>" in page.text
    shown = {name: row["value"] for name, row in page.tables["Settings, versions and hardware"].items()}
    for name in ("commit", "hardware", "precision", "base_model", "python"):
        assert shown[name] == results[name]
    assert shown["versions.torch"] == results["versions"]["torch"]
    assert shown["bands"] == "0..9; 10..18; 19..28"
    assert float(shown["threshold"]) == pytest.approx(results["threshold"])
    assert float(shown["threshold at 1 % FPR"]) == pytest.approx(results["evidence"]["max_fpr_threshold"])


def test_pictures_are_the_files(folder: Path, page: Read, results: dict[str, Any]) -> None:
    """The same PNG files inside and beside, 1,000 pixels wide, one for each figure."""
    inlined = {base64.b64decode((picture["src"] or "").partition(",")[2]) for picture in page.all("img")}
    files = {path.stem: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert set(files.values()) == inlined
    assert list(files.keys()) != []
    assert set(files) == set(report.draw_figures(results))
    for picture in inlined:
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", picture[16:20]) == (1000,)


def test_a_page_is_the_same_twice(tmp_path: Path) -> None:
    """No time, no chance."""
    results = example()
    results["evidence"] = {name: results["evidence"][name] for name in ("lens", "histograms")}
    folder = save(tmp_path / "run", results)
    first = report.write_report(folder).read_bytes()
    assert report.write_report(folder).read_bytes() == first


def test_figures_draw_the_numbers(results: dict[str, Any]) -> None:
    """Curves, thresholds, heat maps and dots lie where the results say."""
    figures, evidence = report.draw_figures(results), results["evidence"]
    (panel,) = figures["tpr-random"].figure.axes
    lines = {line.get_label(): line for line in panel.get_lines()}
    for observer, points in evidence["curves"]["random"].items():
        assert lines[observer].get_xdata() == pytest.approx([p["strength"] for p in points])
        assert lines[observer].get_ydata() == pytest.approx([p["tpr"] for p in points])
    for code in ("get_color", "get_marker"):
        assert len({getattr(lines[observer], code)() for observer in LOCATIONS}) == len(LOCATIONS)
    assert panel.get_xscale() == "log"
    (bar,) = [c for c in panel.containers if "75 %" in str(c.get_label())]
    assert np.ravel(bar[0].get_xdata()) == pytest.approx([0.0372])
    assert sorted(bar[2][0].get_segments()[0][:, 0]) == pytest.approx([0.0314, 0.0441])

    (panel,) = figures["bands-concept"].figure.axes
    drawn = panel.images[0].get_array()
    cells = [cell for cell in evidence["grid"] if cell["vectors"] == "concept"]
    assert drawn.shape == (3, len(STRENGTHS))
    for cell in cells:
        place = [(0, 9), (10, 18), (19, 28)].index(tuple(cell["band"])), STRENGTHS.index(cell["strength"])
        assert drawn[place] == pytest.approx(cell["tpr"])

    (panel,) = figures["fpr-kinds"].figure.axes
    names = [label.get_text() for label in panel.get_yticklabels()]
    dots = {c.get_label(): c for c in panel.containers}
    shapes = {name: dots[name][0].get_marker() for name in ("seen in training", "unseen")}
    assert shapes["unseen"] != shapes["seen in training"]
    found = {}
    for container in dots.values():
        for x, y in zip(container[0].get_xdata(), container[0].get_ydata(), strict=True):
            found[names[round(y)]] = x
    assert found == pytest.approx({f"{row['kind']} ({row['n_clean']})": row["fpr"] for row in evidence["kinds"]})


@pytest.mark.slow
def test_figures_can_be_read(results: dict[str, Any]) -> None:
    """Five inches wide, nothing below nine points, an alternative text with numbers of the data."""
    for name, made in report.draw_figures(results).items():
        assert made.figure.get_size_inches()[0] == 5, name
        texts = [text for text in made.figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 9, name
        page = made.figure.bbox.extents
        made.figure.draw_without_rendering()
        for text in texts:
            x0, y0, x1, y1 = text.get_window_extent().extents
            inside = x0 >= page[0] and y0 >= page[1] and x1 <= page[2] and y1 <= page[3]
            assert inside or not text.get_visible(), (name, text.get_text())
        assert made.table.rows, name
        assert all(len(row) == len(made.table.head) for row in made.table.rows), name
    alt = report.draw_figures(results)["tpr-random"].alt
    assert "75 % at strength 0.037 (0.031-0.044)" in alt
    row = max(results["evidence"]["kinds"], key=lambda row: row["fpr"])
    assert f"{three(row['fpr'])} ({ends(row['fpr_interval'])})" in report.draw_figures(results)["fpr-kinds"].alt


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
    report.main(["--run", str(OLD), "--out", str(tmp_path / "old.html")])
    page = Read((tmp_path / "old.html").read_text(encoding="utf-8"))
    needs_nothing(page)
    is_sound(page)
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]
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
