"""The ladder of generalisation: from vectors that were trained on up to concepts and other kinds of text.

Every rung is a test set of the data module, and every way of asking is a run of ``test``: the untrained model, the same
model told how it could notice, and the adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from introspection_lit.evaluation.rungs import HIGHEST_FPR, LOWEST_AUROC, LOWEST_TPR, RUNGS, Summaries, failures
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED
from introspection_lit.tools.baseline import percent
from introspection_lit.training.callbacks.evidence import Evidence
from introspection_lit.training.callbacks.writers import ResultsWriter
from introspection_lit.training.run_context import run_folder

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from introspection_lit.cli import IntrospectionCLI
    from introspection_lit.training.datamodule import IntrospectionDataModule


class Way(NamedTuple):
    """A way of asking.

    Attributes:
        name: In tables.
        info: What is said before the question, see ``data.info``; None: what the configuration says.
        adapter: With the adapter on.
    """

    name: str
    info: str | None
    adapter: bool


ADAPTER = Way("adapter", None, True)
UNTRAINED = (Way("untrained", "none", False), Way("with info", "explained", False))


def climb(cli: IntrospectionCLI, adapter: bool) -> Iterator[tuple[Way, Summaries]]:
    """Test the model in every way; the adapter comes first, since it brings the model.

    Args:
        cli: Put together, not run.
        adapter: The configuration has an adapter.

    Yields:
        The way, and the summaries of its test sets, lowest rung first.
    """
    module, data = cli.model, cli.datamodule
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    writers = [callback for callback in callbacks if isinstance(callback, ResultsWriter)]
    if not adapter:
        data = _with_options(data, info="none")
    for callback in callbacks:
        if isinstance(callback, Evidence):
            callback.enabled = False
    for way in (ADAPTER, *UNTRAINED) if adapter else UNTRAINED:
        for writer in writers:
            writer.name, writer.prints = f"results-{way.name.replace(' ', '-')}", False
        asked = _asked_otherwise(cli, data, way.info)
        threshold = module.threshold
        module.threshold = threshold if way.adapter else 0.0
        # A model that has not been loaded yet gets a fresh adapter, which changes nothing.
        off: AbstractContextManager[Any] = nullcontext()
        if module.layers and not way.adapter:
            off = module.model.disable_adapter()
        with off, warnings.catch_warnings():
            if not way.adapter:  # asked otherwise than the adapter was trained on purpose
                warnings.filterwarnings("ignore", ".*in training it was.*")
            cli.trainer.test(module, datamodule=asked, verbose=False)
        if not way.adapter:
            module.threshold = threshold
        yield way, {name: module.summaries[name] for name in RUNGS if name in data.options.test_sets}


def _asked_otherwise(cli: IntrospectionCLI, data: IntrospectionDataModule, info: str | None) -> IntrospectionDataModule:
    """A data module that asks with another text before the question; the same one if the text is the same."""
    if info is None or info == data.options.info:
        return data
    # The bank was measured for the way before, and saved in the run's folder.
    bank = str(data.options.bank or run_folder(cli.trainer) / "vectors.safetensors")
    return _with_options(data, info=info, bank=bank)


def _with_options(data: IntrospectionDataModule, **changes: Any) -> IntrospectionDataModule:
    return type(data)(**vars(replace(data.options, **changes)))


def table(ways: Mapping[str, Summaries]) -> Table:
    """Lay the ladder out: rungs from top to bottom, ways of asking side by side."""
    made = Table(title="The ladder: AUROC, TPR and FPR at the threshold", padding=(0, 1))
    made.add_column("rung", no_wrap=True)
    for name in ways:
        made.add_column(f"{name}\nAUROC TPR  FPR  ", justify="right", no_wrap=True)
    for rung in next(iter(ways.values())):
        cells = []
        for rows in ways.values():
            row = rows[rung]
            mark = " " if not failures(row) else "✗"
            cells.append(f"{row['auroc']:.2f} {row['tpr']:.2f} {row['fpr']:.2f} {mark}")
        made.add_row(RUNGS[rung], *cells)
    return made


def answer_table(ways: Mapping[str, Summaries]) -> Table:
    """What the model says in so many words: P(yes) under the full softmax, clean and steered."""
    made = Table(title="P(yes), clean → steered", padding=(0, 1))
    made.add_column("rung", no_wrap=True)
    for name in ways:
        made.add_column(name, justify="right", no_wrap=True)
    for rung in next(iter(ways.values())):
        rows = [rows[rung] for rows in ways.values()]
        made.add_row(RUNGS[rung], *(f"{percent(r['p_yes_clean'])} → {percent(r['p_yes_steered'])}" for r in rows))
    return made


def figure(ways: Mapping[str, Summaries]) -> Figure:
    """Draw AUROC, TPR and FPR of every rung, ways of asking side by side; FPR with its 95 % interval."""
    rungs = list(next(iter(ways.values())))
    drawn = Figure(figsize=(10, 1.2 + 0.62 * len(rungs)), layout="constrained")
    panels = drawn.subplots(1, 3, sharey=True)
    colours = dict(zip(ways, (CLEAN, ANOTHER, STEERED), strict=False))
    height = 0.8 / len(ways)
    for panel, (key, title, limit) in zip(
        panels, (("auroc", "AUROC", LOWEST_AUROC), ("tpr", "TPR", LOWEST_TPR), ("fpr", "FPR", HIGHEST_FPR)), strict=True
    ):
        for lane, (name, rows) in enumerate(ways.items()):
            places = np.arange(len(rungs)) + height * (lane - (len(ways) - 1) / 2)
            values = [rows[rung][key] for rung in rungs]
            panel.barh(places, values, height * 0.9, color=colours[name], label=name)
            if key == "fpr":
                low, high = np.array([rows[rung]["fpr_interval"] for rung in rungs]).T
                spread = np.clip([values - low, high - values], 0, None)
                panel.errorbar(values, places, xerr=spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
        panel.axvline(limit, color="black", linewidth=0.8, linestyle="--")
        panel.set_xlim(0, 1.02)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rungs)), [RUNGS[rung] for rung in rungs])
    panels[0].invert_yaxis()
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ways), frameon=False)
    return drawn
