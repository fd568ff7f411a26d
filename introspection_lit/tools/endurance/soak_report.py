"""What a soak has shown: whether anything grew, as checks with their limits and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from scipy import stats

from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED
from introspection_lit.tools.endurance.footprint import Footprint
from introspection_lit.tools.endurance.soak import LONG, REST, RESUMED, SHORT, Sample, Soak

MIB = 2**20
# Of each half, the first part in which caches fill, lazy imports happen and allocators settle.
WARM_UP = 1 / 3
# What may come and go without a leak. Resident memory moves by some MiB as the allocator takes pages and gives them back;
# what is allocated differs with the width of the batch that is being trained on. Over the 20 minutes of an hour's run that
# are judged, some ten thousand steps, 4 MiB are less than half a KiB a step.
RESIDENT_GROWTH, RESIDENT_SHARE = 20 * MIB, 0.02
# Within the first minutes the allocator still takes what it will keep: of a shorter time, resident memory says little, and
# what is allocated has to do.
SETTLED, UNSETTLED_GROWTH = 300.0, 100 * MIB
ALLOCATED_GROWTH = 4 * MIB
# What a life may leave behind: jsonargparse keeps some of every command line that it reads, a tenth of a MiB.
LEFT_BY_LIFE = MIB
# A batch whose trials share caches has a tensor that says so, and so on.
SPREAD_OF_TENSORS = 3
# Python objects: a library's own bookkeeping, such as types that are made once, takes some hundreds.
OBJECTS_GROWTH = 3000
Reading = Callable[[Footprint], int]


class Check(NamedTuple):
    """One thing that must not grow.

    Attributes:
        name: What.
        found: In words.
        limit: In words.
        passed: It has not grown.
    """

    name: str
    found: str
    limit: str
    passed: bool


def warm(samples: Sequence[Sample]) -> list[Sample]:
    """Leave out the samples of the warm-up: the first third of the time; at least two are left."""
    if len(samples) < 3:
        return list(samples)
    first, last = samples[0].seconds, samples[-1].seconds
    later = [sample for sample in samples if sample.seconds >= first + WARM_UP * (last - first)]
    return later if len(later) > 1 else list(samples[-2:])


def growth(samples: Sequence[Sample], read: Reading) -> float:
    """How much something grows from the first to the last sample, by a straight line.

    The slope is the median of the slopes between all pairs of samples (Theil 1950, Sen 1968): up to 29 % of the samples may
    be far off without any effect.

    Args:
        samples: Two or more, at different times.
        read: What of them.
    """
    seconds = np.array([sample.seconds for sample in samples])
    values = np.array([float(read(sample.holds)) for sample in samples])
    return float(stats.theilslopes(values, seconds)[0] * (seconds[-1] - seconds[0]))


def constant(name: str, samples: Sequence[Sample], read: Reading, spread: int = 0) -> Check:
    """Check that something is the same in all samples, but for a spread from the lowest to the highest."""
    values = [read(sample.holds) for sample in samples]
    low, high = min(values), max(values)
    limit = f"within {spread}" if spread else "always the same"
    return Check(name, f"{low}" if low == high else f"{low} to {high}", limit, high - low <= spread)


def bounded(name: str, samples: Sequence[Sample], read: Reading, limit: float) -> Check:
    """Check that memory grows by less than a limit, in bytes."""
    found = growth(samples, read)
    at_end = f"{read(samples[-1].holds) / MIB:.1f} MiB"
    minutes = (samples[-1].seconds - samples[0].seconds) / 60
    said = f"{found / MIB:+.2f} MiB in {minutes:.1f} min, to {at_end}"
    return Check(name, said, f"+{limit / MIB:.0f} MiB", found < limit)


def checks(soak: Soak) -> list[Check]:
    """Judge a soak: samples of the long fit, of several lives, and of what was left after each."""
    samples = soak.samples
    long = warm([sample for sample in samples if sample.scene == LONG])
    training = [sample for sample in samples if sample.scene != REST]
    settled = long + warm([sample for sample in samples if sample.scene in (SHORT, RESUMED)])
    rests = warm([sample for sample in samples if sample.scene == REST and sample.life])
    found = [
        constant("hooks, at every sample of training", training, lambda holds: holds.hooks),
        constant("open files, in training", settled, lambda holds: holds.files),
        constant("figures, in training and after", [*settled, *rests], lambda holds: holds.figures),
        constant("tensors, one long fit", long, lambda holds: holds.tensors, SPREAD_OF_TENSORS),
        constant("tensors, between lives", rests, lambda holds: holds.tensors, SPREAD_OF_TENSORS),
        constant("threads, one long fit", long, lambda holds: holds.threads),
        constant("threads, between lives", rests, lambda holds: holds.threads),
    ]
    for name, group in (("one long fit", long), ("between lives", rests)):
        more = growth(group, lambda holds: holds.objects)
        found.append(Check(f"Python objects, {name}", f"{more:+,.0f}", f"+{OBJECTS_GROWTH:,}", more < OBJECTS_GROWTH))
    judged = long[-1].seconds - long[0].seconds
    least = RESIDENT_GROWTH if judged >= SETTLED else UNSETTLED_GROWTH
    resident = max(least, RESIDENT_SHARE * long[-1].holds.resident)
    found.append(bounded("resident memory, one long fit", long, lambda holds: holds.resident, resident))
    if all(sample.holds.allocated for sample in samples):
        found.append(bounded("allocated memory, one long fit", long, lambda holds: holds.allocated, ALLOCATED_GROWTH))
    left = LEFT_BY_LIFE * (rests[-1].life - rests[0].life)
    found.append(bounded("resident memory, between lives", rests, lambda holds: holds.resident, resident + left))
    if all(sample.holds.allocated for sample in rests):
        more = ALLOCATED_GROWTH + left
        found.append(bounded("allocated memory, between lives", rests, lambda holds: holds.allocated, more))
    return [*found, *_entries(soak)]


def _entries(soak: Soak) -> list[Check]:
    """Caches that have a limit keep to it."""
    remembered = max(sample.holds.remembered for sample in soak.samples)
    encoded = max(sample.holds.encoded for sample in soak.samples)
    most, bound = soak.most_remembered, soak.most_encoded
    limit = "one has no limit" if most is None else f"{most}"
    return [
        Check("entries of function caches", f"{remembered}", limit, most is not None and remembered <= most),
        Check("tokenised conversations", f"{encoded}", f"{bound}: contexts x questions", encoded <= bound),
    ]


def table(found: Sequence[Check]) -> Table:
    """Lay the checks out."""
    made = Table(title="What must not grow", padding=(0, 1))
    for column in ("", "found", "limit", ""):
        made.add_column(column, no_wrap=column != "limit")
    for check in found:
        made.add_row(check.name, check.found, check.limit, "flat" if check.passed else "GROWS")
    return made


# Panels of the figure, from top to bottom: the axis, and what is drawn in it.
PANELS: dict[str, dict[str, Callable[[Sample], float]]] = {
    "memory, MiB": {
        "resident": lambda sample: sample.holds.resident / MIB,
        "allocated": lambda sample: sample.holds.allocated / MIB,
        "kept caches": lambda sample: sample.holds.kept_bytes / MIB,
    },
    "tensors": {"tensors": lambda sample: sample.holds.tensors},
    "objects, thousands": {"Python objects": lambda sample: sample.holds.objects / 1000},
    "hooks, files, threads": {
        "hooks": lambda sample: sample.holds.hooks,
        "open files": lambda sample: sample.holds.files,
        "threads": lambda sample: sample.holds.threads,
    },
    "trials/s": {"trained, validations included": lambda sample: sample.trials_per_second},
}


def figure(samples: Sequence[Sample]) -> Figure:
    """Draw memory, tensors, objects, hooks, files, threads and speed over time.

    Args:
        samples: Of a soak; those of lives come after those of the long fit.
    """
    drawn = Figure(figsize=(9, 1.9 * len(PANELS)), layout="constrained")
    training = [sample for sample in samples if sample.scene != REST]
    parts = [[sample for sample in training if not sample.life], [sample for sample in training if sample.life]]
    for panel, (axis, lines) in zip(drawn.subplots(len(PANELS), sharex=True), PANELS.items(), strict=True):
        for (name, read), colour in zip(lines.items(), (CLEAN, STEERED, ANOTHER), strict=False):
            for number, part in enumerate(parts):  # nothing is drawn from the long fit to the first life
                known = [sample for sample in part if read(sample) or axis != "trials/s"]  # the first of a fit has no rate
                x, y = [sample.seconds / 60 for sample in known], [read(sample) for sample in known]
                label = name if not number else None
                style = {"marker": ".", "markersize": 3, "linewidth": 0 if number else 0.7, "color": colour}
                panel.plot(x, y, label=label, **style)
        if parts[1]:
            panel.axvspan(parts[1][0].seconds / 60, samples[-1].seconds / 60, color="0.94", zorder=0)
        panel.set_ylabel(axis, fontsize=8)
        panel.set_ylim(0, 1.35 * max(panel.get_ylim()[1], 1))  # room for the legend
        panel.legend(fontsize=7, frameon=False, loc="upper left", ncols=len(lines))
        panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("minutes; white: one long fit; grey: lives of fit, resumed fit and test, each with a new model")
    return drawn
