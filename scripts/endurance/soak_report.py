"""Judges an endurance test: whether anything grew, as checks with their limits and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from endurance.soak import LONG, REST, RESUMED, SHORT, Sample, Soak
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED

MIB = 2**20
# The first part of each half, in which caches fill, lazy imports happen and allocators reach their size.
WARM_UP = 1 / 3
# Growth that is no leak. Resident memory varies by some MiB as the allocator takes pages and returns them; allocated memory
# varies with the width of the current batch. In the 20 minutes of an hour's run that are judged, some ten thousand steps,
# 4 MiB are less than half a KiB a step.
RESIDENT_GROWTH, RESIDENT_SHARE = 20 * MIB, 0.02
ALLOCATED_GROWTH = 4 * MIB
# In the first minutes the allocator still grows: over a shorter time, resident memory says little.
SETTLED, UNSETTLED_GROWTH = 300.0, 100 * MIB
# What a life may leave behind: jsonargparse keeps a tenth of a MiB of every command line that it reads.
LEFT_BY_LIFE = MIB
# A batch whose trials share caches has one tensor more, and so on.
SPREAD_OF_TENSORS = 3
# A library's own bookkeeping, such as types that are made once, takes some hundreds.
OBJECTS_GROWTH = 3000


class Check(NamedTuple):
    """One thing that must not grow: the value and its limit in words."""

    name: str
    found: str
    limit: str
    passed: bool


def warm(samples: Sequence[Sample]) -> list[Sample]:
    """Leave out the samples of the warm-up: the first third of the time; at least two are left."""
    first, last = samples[0].seconds, samples[-1].seconds
    later = [sample for sample in samples if sample.seconds >= first + WARM_UP * (last - first)]
    return later if len(later) > 1 else list(samples[-2:])


def growth(samples: Sequence[Sample], field: str) -> float:
    """The growth of a field of the footprint from the first to the last sample, by a straight line.

    The slope is the median of the slopes between all pairs of samples (Theil 1950, Sen 1968): up to 29 % of the samples may
    be far off without any effect.

    Args:
        samples: Two or more, at different times.
        field: Of their footprints.
    """
    seconds = np.array([sample.seconds for sample in samples])
    values = np.array([float(getattr(sample.holds, field)) for sample in samples])
    return float(stats.theilslopes(values, seconds)[0] * (seconds[-1] - seconds[0]))


def constant(name: str, samples: Sequence[Sample], field: str, spread: int = 0) -> Check:
    """Check that a field is the same in all samples, but for a spread from the lowest to the highest."""
    values = [getattr(sample.holds, field) for sample in samples]
    low, high = min(values), max(values)
    limit = f"within {spread}" if spread else "always the same"
    return Check(name, f"{low}" if low == high else f"{low} to {high}", limit, high - low <= spread)


def bounded(name: str, samples: Sequence[Sample], field: str, limit: float) -> Check:
    """Check that memory grows by less than a limit, in bytes."""
    more, minutes = growth(samples, field), (samples[-1].seconds - samples[0].seconds) / 60
    found = f"{more / MIB:+.2f} MiB in {minutes:.1f} min, to {getattr(samples[-1].holds, field) / MIB:.1f} MiB"
    return Check(name, found, f"+{limit / MIB:.0f} MiB", more < limit)


def checks(soak: Soak) -> list[Check]:
    """Judge the samples of the long fit, of the lives, and between the lives."""
    samples = soak.samples
    long = warm([sample for sample in samples if sample.scene == LONG])
    training = [sample for sample in samples if sample.scene != REST]
    settled = long + warm([sample for sample in samples if sample.scene in (SHORT, RESUMED)])
    rests = warm([sample for sample in samples if sample.scene == REST and sample.life])
    groups = {"one long fit": long, "between lives": rests}
    found = [
        constant("hooks, at every sample of training", training, "hooks"),
        constant("open files, in training", settled, "files"),
        constant("figures, in training and after", [*settled, *rests], "figures"),
        *(constant(f"tensors, {name}", group, "tensors", SPREAD_OF_TENSORS) for name, group in groups.items()),
        *(constant(f"threads, {name}", group, "threads") for name, group in groups.items()),
    ]
    for name, group in groups.items():
        more = growth(group, "objects")
        found.append(Check(f"Python objects, {name}", f"{more:+,.0f}", f"+{OBJECTS_GROWTH:,}", more < OBJECTS_GROWTH))
    least = RESIDENT_GROWTH if long[-1].seconds - long[0].seconds >= SETTLED else UNSETTLED_GROWTH
    resident = max(least, RESIDENT_SHARE * long[-1].holds.resident)
    for name, group in groups.items():
        left = LEFT_BY_LIFE * (group[-1].life - group[0].life)  # none in the long fit
        found.append(bounded(f"resident memory, {name}", group, "resident", resident + left))
        if all(sample.holds.allocated for sample in group):
            found.append(bounded(f"allocated memory, {name}", group, "allocated", ALLOCATED_GROWTH + left))
    remembered, encoded = (max(getattr(each.holds, field) for each in samples) for field in ("remembered", "encoded"))
    most, bound = soak.most_remembered, soak.most_encoded
    limit = "one has no limit" if most is None else f"{most}"
    found.append(Check("entries of function caches", f"{remembered}", limit, most is not None and remembered <= most))
    found.append(Check("tokenised conversations", f"{encoded}", f"{bound}: contexts x questions", encoded <= bound))
    return found


def table(found: Sequence[Check]) -> Table:
    """The checks as a table."""
    rows = Table("", "found", "limit", "", title="What must not grow", padding=(0, 1))
    for column in rows.columns:
        column.no_wrap = column.header != "limit"
    for check in found:
        rows.add_row(check.name, check.found, check.limit, "flat" if check.passed else "GROWS")
    return rows


# Panels of the figure, from top to bottom: the axis, its unit, and for each label the field of a sample or its footprint.
PANELS: dict[str, tuple[float, dict[str, str]]] = {
    "memory, MiB": (MIB, {"resident": "resident", "allocated": "allocated", "kept caches": "kept_bytes"}),
    "tensors": (1, {"tensors": "tensors"}),
    "objects, thousands": (1000, {"Python objects": "objects"}),
    "hooks, files, threads": (1, {"hooks": "hooks", "open files": "files", "threads": "threads"}),
    "trials/s": (1, {"trained, validations included": "trials_per_second"}),
}


def figure(samples: Sequence[Sample]) -> Figure:
    """Draw memory, tensors, objects, hooks, files, threads and speed over time.

    Args:
        samples: Those of lives after those of the long fit.
    """
    drawn = Figure(figsize=(9, 1.9 * len(PANELS)), layout="constrained")
    training = [sample for sample in samples if sample.scene != REST]
    parts = [[sample for sample in training if not sample.life], [sample for sample in training if sample.life]]
    for panel, (axis, (unit, lines)) in zip(drawn.subplots(len(PANELS), sharex=True), PANELS.items(), strict=True):
        for (label, field), colour in zip(lines.items(), (CLEAN, STEERED, ANOTHER), strict=False):
            for number, part in enumerate(parts):  # separate lines: none from the long fit to the first life
                points = [(sample.seconds / 60, sample._asdict() | sample.holds._asdict()) for sample in part]
                points = [
                    point for point in points if point[1][field] or axis != "trials/s"
                ]  # the first of a fit has no rate
                x, y = [minutes for minutes, _ in points], [values[field] / unit for _, values in points]
                style: dict[str, Any] = {"marker": ".", "markersize": 3, "linewidth": 0 if number else 0.7}
                panel.plot(x, y, label=None if number else label, color=colour, **style)
        if parts[1]:
            panel.axvspan(parts[1][0].seconds / 60, samples[-1].seconds / 60, color="0.94", zorder=0)
        panel.set_ylabel(axis, fontsize=8)
        panel.set_ylim(0, 1.35 * max(panel.get_ylim()[1], 1))  # room for the legend
        panel.legend(fontsize=7, frameon=False, loc="upper left", ncols=len(lines))
        panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("minutes; white: one long fit; grey: lives of fit, resumed fit and test, each with a new model")
    return drawn
