"""Figures in few colours: areas keep theirs, edges stay close, and a report on everything is at most a megabyte."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Read, save
from PIL import Image
from project_paths import ROOT
from results_example import example, example_histogram, example_roc

from introspection_lit import report
from introspection_lit.evaluation.rungs import RUNGS
from introspection_lit.report.page import draw_figures
from introspection_lit.report.pictures import AREA, LEVELS, MAX_WEBP, data_url, few_colours, to_picture, to_png

MEGABYTE = 1_000_000


def decoded(url: str) -> Image.Image:
    """The picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_areas_keep_their_colours_and_edges_stay_close() -> None:
    """A photograph-like edge beside areas of near colours: the areas exactly, the rest within half a step."""
    random = np.random.default_rng(0)
    pixels = np.full((200, 300, 3), 255, np.uint8)
    pixels[:, 100:200] = (217, 234, 243)  # a pale band, as that of an interval
    pixels[:100, 200:] = (0, 114, 178)
    pixels[:, 99:101] = random.integers(0, 256, (200, 2, 3))
    made = np.asarray(few_colours(Image.fromarray(pixels)).convert("RGB"))
    same = np.delete(np.arange(300), (99, 100))
    assert (made[:, same] == pixels[:, same]).all()
    edge = made[:, 99:101].astype(int)
    assert np.abs(edge - pixels[:, 99:101]).max() <= np.ceil(255 / (LEVELS - 1) / 2)
    assert len(np.unique(edge.reshape(-1, 3), axis=0)) <= LEVELS**3 < len(np.unique(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize(("colours", "mode"), [(4, "P"), (700, "RGB")])
def test_many_areas(colours: int, mode: str) -> None:
    """More colours than a palette holds are kept all the same, if each is an area."""
    assert 1 / colours > AREA
    row = np.arange(colours, dtype=np.uint32) * 19
    areas = np.stack([row >> 8, row & 255, row % 251], axis=1).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(areas, (9, colours, 3)).copy())
    made = few_colours(picture)
    assert made.mode == mode
    assert (np.asarray(made.convert("RGB")) == np.asarray(picture)).all()


def test_page_and_file_have_the_same_pixels() -> None:
    """Also where a picture is too tall for the smaller format."""
    for height, kind in ((40, "webp"), (MAX_WEBP, "webp"), (MAX_WEBP + 1, "png")):
        pixels = np.zeros((height, 8, 3), np.uint8)
        pixels[::3, 2:] = (230, 159, 0)
        picture = few_colours(Image.fromarray(pixels))
        assert data_url(picture).startswith(f"data:image/{kind};base64,")
        for made in (decoded(data_url(picture)), Image.open(io.BytesIO(to_png(picture)))):
            assert (np.asarray(made.convert("RGB")) == pixels).all()


def test_heat_map_has_the_colours_that_matplotlib_draws() -> None:
    """Those of its cells, and a line's: what a reader tells apart."""
    evidence = example()["evidence"]
    figures = draw_figures({"evidence": {name: evidence[name] for name in ("grid", "curves")}})
    for name in ("bands-random", "tpr-random"):
        figure = figures[name].figure
        drawn = {tuple(colour) for colour in np.asarray(to_picture(figure).convert("RGB")).reshape(-1, 3)}
        (panel,) = figure.axes
        if panel.images:
            (cells,) = panel.images
            wanted = cells.cmap(cells.norm(cells.get_array()), bytes=True).reshape(-1, 4)[:, :3]
        else:
            wanted = [
                [int(line.get_color()[place : place + 2], 16) for place in (1, 3, 5)] for line in panel.get_lines()[:4]
            ]
        assert {tuple(map(int, colour)) for colour in wanted} <= {tuple(map(int, colour)) for colour in drawn}, name


def everything() -> dict[str, Any]:
    """A run of full size with each part that a report can have: 52 kinds, nine strengths, all test sets, changes, tasks."""
    results = example(extra_kinds=32, strengths=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0))
    random = np.random.default_rng(0)
    evidence = results["evidence"]
    evidence["histograms"] = {name: example_histogram(random) for name in [*RUNGS, "doses", "doses_concept"]}
    sets = ("heldout", "concept", "newkinds")
    evidence["roc"] = {
        name: {line: example_roc(random, apart) for line, apart in (("adapter", 5), ("linear probe", 5.6), ("norms", 1.8))}
        for name in sets
    }
    for file, parts in (
        ("deployment/benign", ("deployed",)),
        ("tasks/seed-0", ("tasks", "choices")),
        ("quickstart/seed-0", ("long", "as_exported")),
    ):
        other = json.loads((ROOT / f"docs/results/{file}.json").read_text(encoding="utf-8"))["evidence"]
        evidence |= {part: other[part] for part in parts}
    return results


@pytest.mark.slow
def test_report_on_everything_is_at_most_a_megabyte(tmp_path: Path) -> None:
    """The page of a run with more figures than any, and the stored ones."""
    folder = save(tmp_path / "run", everything())
    page = report.write_report(folder)
    pictures = Read(page.read_text(encoding="utf-8")).all("img")
    assert len(pictures) >= 30
    assert page.stat().st_size <= MEGABYTE
    stored = list((ROOT / "docs/results/smollm2-135m").glob("report-seed-*.html"))
    assert stored
    assert all(report.stat().st_size <= MEGABYTE for report in stored)
