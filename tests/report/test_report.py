"""The report: what it shows is what the results say, whatever they say, and it needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Read, ends, is_sound, needs_nothing, save, three
from PIL import Image
from project_paths import ROOT
from results_example import LOCATIONS, STRENGTHS, example, example_seeds

from introspection_lit import report
from introspection_lit.evaluation.rungs import RUNGS

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
        assert shown[row] == {
            "off": three(off),
            "on": three(on),
            "change": f"{'-' if on < off else '+'}{three(abs(on - off))}",
        }


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
    """The same pixels inside and in the files beside, 1,000 of them wide, a picture for each figure."""
    inlined = {pixels(base64.b64decode((picture["src"] or "").partition(",")[2])) for picture in page.all("img")}
    files = {path.stem: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert {pixels(file) for file in files.values()} == inlined
    assert list(files.keys()) != []
    assert set(files) == set(report.draw_figures(results))
    for file in files.values():
        assert file[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", file[16:20]) == (1000,)


def pixels(file: bytes) -> bytes:
    """Of a picture, in RGB."""
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


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
