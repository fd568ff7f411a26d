"""The measurements as tables of the console and of docs/scaling.md, in words, and as a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table

from introspection_lit.report.drawing import GREY, styled
from introspection_lit.report.log_odds_plot import CLEAN, STEERED
from introspection_lit.report.pictures import to_picture, to_png
from introspection_lit.tools.scaling.axes import AXES, Point, line
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.files import write_file

PAGE, PICTURE, RESULTS = "scaling.md", "scaling.png", "results/scaling.json"
BEGIN, END = "<!-- measured: scripts/scaling.py writes this part -->", "<!-- measured: end -->"
NOTHING_YET = "Not measured yet: `python scripts/scaling.py --write` measures, and writes this part and its figure."
MIB = 2**20
ALT = "Seconds and memory against context length, questions, batch, contexts kept, and trials of a manifest and of a test"


def columns(name: str, points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and the cells of each size."""
    fitted = line(points, "seconds")
    files = list(points[0].get("files", {}))
    head = [
        AXES[name].unit,
        "trials/s",
        "seconds",
        "line",
        "MiB",
        *(f"{file.rpartition('.')[2]} kB" for file in files),
    ]
    rows = [
        [
            f"{point['size']:,}",
            _three_digits(point["trials"] / point["seconds"]),
            _three_digits(point["seconds"]),
            "" if fitted is None else f"{point['seconds'] / fitted.seconds(point['size']):.2f}",
            f"{point['memory'] / MIB:,.0f}",
            *(f"{point['files'][file] / 1e3:,.0f}" for file in files),
        ]
        for point in points
    ]
    return head, rows


def sentence(name: str, points: Sequence[Point]) -> str:
    """The straight lines through seconds and memory, and how far the worst size is from them."""
    if len(points) < 2:
        return "One size: no line."
    said, unit = [], AXES[name].unit.removesuffix("s")
    for key, amount in (("seconds", _seconds), ("memory", _bytes)):
        fitted = line(points, key)
        if fitted is None:
            said.append(f"{key.capitalize()}: no rise.")
        else:
            start, each = amount(fitted.overhead), amount(1 / fitted.rate)
            said.append(f"{key.capitalize()}: {start}, and {each} a {unit}; worst size {100 * fitted.worst:.0f} % off.")
    return " ".join(said)


def _seconds(value: float) -> str:
    factor, unit = next((pair for pair in ((1, "s"), (1e3, "ms")) if abs(value) * pair[0] >= 1), (1e6, "µs"))
    return f"{_three_digits(value * factor)} {unit}"


def _bytes(value: float) -> str:
    factor, unit = (1 / MIB, "MiB") if abs(value) >= MIB else (1 / 1024, "KiB") if abs(value) >= 1024 else (1, "bytes")
    return f"{_three_digits(value * factor)} {unit}"


def console_table(name: str, points: Sequence[Point]) -> Table:
    """The sizes of an axis in at most 80 columns."""
    head, rows = columns(name, points)
    table = Table(title=AXES[name].title, padding=(0, 1))
    for title in head:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(found: Mapping[str, Any]) -> str:
    """The part of the page between its marks."""
    if not found:
        return NOTHING_YET
    return "\n\n".join(
        [f"![{ALT}]({PICTURE})", *(part for name in AXES if name in found for part in _section(name, found))]
    )


def _section(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    axis, measured = AXES[name], found[name]
    settings = ", ".join(f"{key} {value}" for key, value in measured["settings"].items())
    yield f"### {axis.title}"
    yield f"Measured: {axis.what}."
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(point["commit"] for point in measured["points"]))
    yield f"`{measured['command']}` (commit {commits}, {measured['hardware']}, {settings}, seed 0)"
    head, rows = columns(name, measured["points"])
    cells = [head, ["---:"] * len(head), *rows]
    yield "\n".join(f"| {' | '.join(row)} |" if row[0] != "---:" else f"|{'|'.join(row)}|" for row in cells)
    yield sentence(name, measured["points"])
    yield axis.reason


def write_page(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the figure, ``results/scaling.json``, and the measured part of the page if the folder has the page.

    Args:
        folder: With the page.
        found: The measurements.

    Raises:
        ConfigurationError: The page has no marks.
    """
    if found:
        write_file(folder / PICTURE, to_png(to_picture(draw(found))))
    page = folder / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else None
    if text is not None and not (BEGIN in text and END in text):
        raise ConfigurationError([f"--write: {page} has no lines {BEGIN!r} and {END!r}. Put them where the part belongs."])
    write_file(folder / RESULTS, json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_file(folder / PICTURE, to_png(to_picture(draw(found))))
    if text is not None:
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        write_file(page, f"{before}{BEGIN}\n\n{markdown(found)}\n\n{END}{after}")


@styled
def draw(found: Mapping[str, Any]) -> Figure:
    """Draw seconds and memory of each axis, log against log, with the straight line through the seconds."""
    names = [name for name in AXES if name in found]
    rows = -(-len(names) // 2)
    figure = Figure(figsize=(7.5, 0.6 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    twins = [_draw_axis(panel, name, found[name]["points"]) for panel, name in zip(panels, names, strict=False)]
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    lines = [handle for axes in (panels[0], twins[0]) for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(lines, [str(each.get_label()) for each in lines], loc="outside lower center", ncols=3)
    return figure


def _draw_axis(panel: Any, name: str, points: Sequence[Point]) -> Any:
    """Draw one panel; its second axis, of the memory, is returned."""
    sizes = [point["size"] for point in points]
    panel.plot(sizes, [point["seconds"] for point in points], "o-", color=CLEAN, label="seconds")
    fitted = line(points, "seconds")
    x = np.geomspace(sizes[0], sizes[-1], 100)
    straight = [fitted.seconds(size) for size in x] if fitted else [np.nan] * len(x)
    panel.plot(x, straight, ":", color=GREY, label="straight line")
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = min(point["seconds"] for point in points), max(point["seconds"] for point in points)
    panel.set_ylim(low / 1.5, 1.5 * max(high, 8 * low))  # a decade at least, with a labelled tick
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_title(AXES[name].title, fontsize=11)
    panel.set_xlabel(AXES[name].unit)
    panel.set_ylabel("seconds")
    panel.set_xticks(sizes, [_short(size) for size in sizes])
    panel.set_xticks([], minor=True)
    memory = panel.twinx()
    memory.plot(sizes, [point["memory"] / MIB for point in points], "s--", color=STEERED, label="memory, MiB")
    memory.set_ylim(0, 1.15 * max(point["memory"] for point in points) / MIB)
    memory.set_ylabel("MiB")
    memory.spines["right"].set_visible(True)
    return memory


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _short(size: int) -> str:
    """A size for a tick."""
    return next((f"{size // unit}{name}" for unit, name in ((10**6, "M"), (10**3, "k")) if size % unit == 0), str(size))
