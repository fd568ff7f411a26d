"""The results of a benchmark as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def table(results: Mapping[str, Any]) -> Table:
    """Arrange the rows in a table of at most 100 columns."""
    rows = Table(title=f"Training steps of {results['base_model']}", padding=(0, 1))
    factor, unit = scale(results["ceiling_tflops"])
    for column in ("training", "batch", "trials/s", "range", "ratio", unit, "share", "run", "GiB"):
        rows.add_column(column, justify="left" if column == "training" else "right", no_wrap=True)
    for row in results["rows"]:
        name = (row["path"], str(row["batch"]))
        if row["out_of_memory"]:
            rows.add_row(*name, "out of memory")
            continue
        rows.add_row(
            *name,
            digits(row["trials_per_second"]),
            f"{digits(row['lowest'])}-{digits(row['highest'])}",
            f"{row['ratio']:.2f}",
            digits(factor * row["tflops"]),
            f"{100 * row['of_ceiling']:.1f} %",
            digits(factor * row["tflops_run"]),
            f"{row['peak_gib']:.2f}",
        )
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """Explanations of the table, a line each."""
    context, question = results["context_tokens"], results["question_tokens"]
    factor, unit = scale(results["ceiling_tflops"])
    started = {name: seconds for name, seconds in results["seconds_to_start"].items() if seconds is not None}
    lines = [
        f"{results['contexts']} contexts of {context['mean']:.1f} tokens ({context['shortest']} to {context['longest']}), "
        f"questions of {question['mean']:.1f}; N = {results['matrix_weights']:,} weights in the decoder's matrices",
        f"{unit}: nominal, 2N(context + 2 question) for a trial in every row, so reuse raises it; run: what was really run",
        f"share: of {digits(factor * results['ceiling_tflops'])} {unit}, a large {results['ceiling_dtype']} matrix product",
        "seconds to start: " + ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in started.items()),
    ]
    if results["device"] == "cpu":
        lines.append("GiB: the peak of the whole process, which never gives all back; read it of a run with one row")
    if results["largest_batch"] is not None:
        lines.append(f"largest batch that fits: {results['largest_batch']}")
    return lines


def scale(ceiling: float) -> tuple[float, str]:
    """The unit of the table: the factor on TFLOP/s, and its name."""
    return (1.0, "TFLOP/s") if ceiling >= 10 else (1000.0, "GFLOP/s")


def digits(number: float) -> str:
    """A number with three significant digits."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"
