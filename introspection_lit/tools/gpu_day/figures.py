"""What a step shows, as rows of a table: what was asked, the target, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Result = Mapping[str, Any]
MISSING = "not measured"
MICRO_BATCH = 4
LARGEST = 128  # the sweep of the largest batch looks no further: larger ones take minutes
# Targets for the 32B on one card of 80 GB: trials a second, times one trial at a time, GiB at the micro-batch above.
RATE, RATIO, GIB = 60.0, 45.0, 22.0


class Figure(NamedTuple):
    """A row: what, the target (empty: none), and what was measured."""

    what: str
    target: str
    measured: str


class Row(NamedTuple):
    """How a row is made of a step's result.

    Attributes:
        what: What is measured.
        measured: The number as text.
        target: As text.
        met: Whether the target was reached; None: there is none.
    """

    what: str
    measured: Callable[[Result], str]
    target: str = ""
    met: Callable[[Result], bool] | None = None

    def figure(self, result: Result | None) -> Figure:
        """The row of a result; None: of a step that was not run."""
        if result is None:
            return Figure(self.what, self.target, MISSING)
        end = "" if self.met is None else ": reached" if self.met(result) else ": missed"
        return Figure(self.what, self.target, self.measured(result) + end)


def figures(name: str, result: Result | None) -> list[Figure]:
    """The rows of a step.

    Args:
        name: Of the step; its kind is the part before the first hyphen.
        result: What it found; None: it was not run, and every row says so.
    """
    return [row.figure(result) for row in KINDS[name.partition("-")[0]](name)]


def digits(number: float) -> str:
    """Three significant digits."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def exact(number: float) -> str:
    """A difference, or that there is none."""
    return "equal, bit by bit" if number == 0 else f"{number:.1e}"


def best_row(result: Result) -> Mapping[str, Any]:
    """The fastest batched row of a benchmark."""
    rows = [row for row in result["rows"] if row["trials_per_second"] is not None and row["batch"] > 1]
    best: Mapping[str, Any] = max(rows, key=lambda row: row["trials_per_second"])
    return best


def peak_at_micro_batch(result: Result) -> float:
    """The largest peak of the rows with a micro-batch of 4, GiB."""
    return max(row["peak_gib"] for row in result["rows"] if row["batch"] == MICRO_BATCH and row["peak_gib"] is not None)


def speed_rows(name: str) -> list[Row]:
    """Speed and memory; of the 32B there are targets."""

    def best(found: Result) -> str:
        row = best_row(found)
        return f"{digits(row['trials_per_second'])} ({row['path']}, batch {row['batch']})"

    rows = [
        Row("trials/s, best batch", best, f"at least {RATE:g}", lambda found: best_row(found)["trials_per_second"] >= RATE),
        Row(
            "times one trial at a time",
            lambda found: digits(best_row(found)["ratio"]),
            f"at least {RATIO:g}",
            lambda found: best_row(found)["ratio"] >= RATIO,
        ),
        Row(
            f"peak at micro-batch {MICRO_BATCH}, GiB",
            lambda found: f"{peak_at_micro_batch(found):.2f}",
            f"at most {GIB:g}",
            lambda found: peak_at_micro_batch(found) <= GIB,
        ),
    ]
    if name != "speed-32b":
        rows = [row._replace(target="", met=None) for row in rows]
    return [
        *rows,
        Row(f"largest batch that fits, of at most {LARGEST}", lambda found: str(found["largest_batch"])),
        Row("start to first step, s", lambda found: digits(found["seconds_to_start"]["total"])),
    ]


def tests_rows(name: str) -> list[Row]:
    """Tests; skipped ones have shown nothing."""

    def counts(found: Result) -> str:
        return ", ".join(f"{number} {outcome}" for outcome, number in found["outcomes"].items())

    return [
        Row("tests marked gpu", counts, "none fails", lambda found: not {"failed", "skipped"} & found["outcomes"].keys())
    ]


def seed_rows(name: str) -> list[Row]:
    """The full experiment; its other numbers have a table of their own."""
    return [
        Row("AUROC heldout", lambda found: f"{found['numbers']['AUROC heldout']:.4f}"),
        Row("trials/s in training", lambda found: digits(found["trials_per_second"])),
        Row("peak, GiB", lambda found: f"{max(found['peak_gib'], found['test_peak_gib']):.2f}"),
    ]


def fsdp2_rows(name: str) -> list[Row]:
    """Copies of packed weights."""

    def patterns(found: Result) -> str:
        return ", ".join(f"{operation} {number}" for operation, number in found["patterns"].items())

    def sharded(way: str, title: str) -> Row:
        def changed(result: Result) -> str:
            found = result[way]
            if "error" in found:
                return f"failed ({found['error'].strip().splitlines()[-1][:80]})"
            return f"{found['changed']} of {found['elements']:,} ({found['nan_patterns']:,} are a NaN)"

        return Row(f"packed weights changed, {title}", changed, "0", lambda result: result[way].get("changed") == 0)

    return [
        Row("bfloat16 patterns changed, of 65,536", patterns, "0", lambda found: not any(found["patterns"].values())),
        sharded("fsdp", "FSDP"),
        sharded("fsdp2", "FSDP2"),
    ]


def nf4_rows(name: str) -> list[Row]:
    """NF4 of two devices."""
    return [
        Row("packed bytes that differ", lambda found: f"{found['bytes_that_differ']:,} of {found['bytes']:,}"),
        Row("dequantised weights, over the largest one", lambda found: exact(found["largest_difference"])),
        Row("the same bytes, dequantised there", lambda found: exact(found["dequantised_elsewhere"])),
        Row("log-odds, quantised on the CPU, nats", lambda found: exact(found["scores_quantised_elsewhere"])),
        Row("log-odds, quantised and computed there", lambda found: exact(found["scores_all_elsewhere"])),
        Row("range of the log-odds", lambda found: digits(found["scores_range"])),
    ]


def repeat_rows(name: str) -> list[Row]:
    """The same training twice; a deterministic one must be the same."""

    def row(number: str) -> Row:
        key = f"largest_{number}_difference"
        made = Row(f"largest difference of a {number}", lambda found: exact(found[key]))
        if name == "repeat-default":
            return made
        return made._replace(target="equal", met=lambda found: found[key] == 0)

    return [row("loss"), row("score")]


def auto_rows(name: str) -> list[Row]:
    """The chosen micro-batch."""

    def after(found: Result) -> str:
        return "none" if found["next"] is None else f"{found['next']}: {found['next_computed_gib']:.2f}"

    return [
        Row("micro-batch chosen for the 32B", lambda found: str(found["chosen"])),
        Row("peak in training, GiB", lambda found: f"{found['peak_gib']:.2f}"),
        Row("the same, computed", lambda found: f"{found['chosen_computed_gib']:.2f}"),
        Row("the next size, computed", after),
    ]


def run_rows(name: str) -> list[Row]:
    """A training of one node."""

    def against(found: Result) -> str:
        if found["against_one"] is None:
            return "-"
        return ", ".join(f"{key} {exact(found['against_one'][f'largest_{key}_difference'])}" for key in ("loss", "score"))

    return [
        Row("processes", lambda found: str(found["world_size"])),
        Row("trials/s", lambda found: digits(found["trials_per_second"])),
        Row("peak of a process, GiB", lambda found: f"{max(found['peak_gib'], found['test_peak_gib']):.2f}"),
        Row("AUROC heldout", lambda found: f"{found['auroc']:.4f}"),
        Row("largest differences from one GPU", against),
    ]


KINDS: dict[str, Callable[[str], Sequence[Row]]] = {
    "tests": tests_rows,
    "speed": speed_rows,
    "seed": seed_rows,
    "fsdp2": fsdp2_rows,
    "nf4": nf4_rows,
    "repeat": repeat_rows,
    "auto": auto_rows,
    **dict.fromkeys(("one", "ddp", "fsdp"), run_rows),
}
