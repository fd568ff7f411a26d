"""Evaluates the generalisation ladder: test sets from training vectors up to concepts and unseen kinds of text.

Every rung is a test set of the data module. Three variants are tested: the untrained model, the same model with the info
prompt, and the adapter.
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

from introspection_lit.evaluation.rungs import (
    CONTROLS,
    HIGHEST_FPR,
    LOWEST_AUROC,
    LOWEST_TPR,
    RUNGS,
    Summaries,
    failures,
)
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED
from introspection_lit.tools.baseline import format_probability
from introspection_lit.training.callbacks.evidence import Evidence
from introspection_lit.training.callbacks.writers import ResultsWriter
from introspection_lit.training.run_context import run_folder

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from introspection_lit.cli import IntrospectionCLI
    from introspection_lit.training.datamodule import IntrospectionDataModule


class Variant(NamedTuple):
    """A variant of the model and its prompt.

    Attributes:
        name: In tables.
        info: The info prompt before the question, see ``data.info``; None: that of the configuration.
        adapter: Whether the adapter is on.
    """

    name: str
    info: str | None
    adapter: bool


ADAPTER = Variant("adapter", None, True)
UNTRAINED = (Variant("untrained", "none", False), Variant("with info", "explained", False))


def evaluate_variants(cli: IntrospectionCLI, adapter: bool) -> Iterator[tuple[Variant, Summaries]]:
    """Test every variant; the adapter first, since its test loads the model.

    Args:
        cli: Parsed and instantiated, not run.
        adapter: Whether the configuration has an adapter.

    Yields:
        The variant, and the summaries of its test sets, lowest rung first and controls last.
    """
    module, data = cli.model, cli.datamodule
    callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    writers = [callback for callback in callbacks if isinstance(callback, ResultsWriter)]
    if not adapter:  # the results describe the data module of the command line, so it must be one that is tested
        data = cli.datamodule = _with_options(data, info="none")
    for callback in callbacks:
        if isinstance(callback, Evidence):
            callback.enabled = False
    for variant in (ADAPTER, *UNTRAINED) if adapter else UNTRAINED:
        for writer in writers:
            writer.name, writer.prints = f"results-{variant.name.replace(' ', '-')}", False
        data_with_info = _with_info(cli, data, variant.info)
        threshold = module.threshold
        module.threshold = threshold if variant.adapter else 0.0
        # A model that has not been loaded yet gets a new adapter, which does not change its outputs.
        off: AbstractContextManager[Any] = nullcontext()
        if module.layers and not variant.adapter:
            off = module.model.disable_adapter()
        with off, warnings.catch_warnings():
            if not variant.adapter:  # the info prompt differs from training on purpose
                warnings.filterwarnings("ignore", ".*in training it was.*")
            cli.trainer.test(module, datamodule=data_with_info, verbose=False)
        if not variant.adapter:
            module.threshold = threshold
        yield variant, {name: module.summaries[name] for name in (*RUNGS, *CONTROLS) if name in data.options.test_sets}


def _with_info(cli: IntrospectionCLI, data: IntrospectionDataModule, info: str | None) -> IntrospectionDataModule:
    """A data module with this info prompt; the same data module if it has it already."""
    if info is None or info == data.options.info:
        return data
    # The test of the previous variant has measured the bank and saved it in the run's folder.
    bank = str(data.options.bank or run_folder(cli.trainer) / "vectors.safetensors")
    return _with_options(data, info=info, bank=bank)


def _with_options(data: IntrospectionDataModule, **changes: Any) -> IntrospectionDataModule:
    return type(data)(**vars(replace(data.options, **changes)))


def rung_table(variants: Mapping[str, Summaries]) -> Table:
    """A table with a row for each rung and a column for each variant."""
    table = Table(title="The ladder: AUROC, TPR and FPR at the threshold", padding=(0, 1))
    table.add_column("rung", no_wrap=True)
    for name in variants:
        table.add_column(f"{name}\nAUROC TPR  FPR  ", justify="right", no_wrap=True)
    first = next(iter(variants.values()))
    for rung in only_rungs(first):
        cells = []
        for rows in variants.values():
            row = rows[rung]
            mark = " " if not failures(row) else "✗"
            cells.append(f"{row['auroc']:.2f} {row['tpr']:.2f} {row['fpr']:.2f} {mark}")
        table.add_row(RUNGS[rung], *cells, end_section=rung == [*only_rungs(first)][-1])
    for name, (title, honest) in CONTROLS.items():
        if name in first:
            table.add_row(
                f"{title} ({honest:g})", *(f"{rows[name]['auroc']:.2f}            " for rows in variants.values())
            )
    return table


def only_rungs(rows: Summaries) -> Summaries:
    """The rungs among the test sets of a variant."""
    return {name: row for name, row in rows.items() if name in RUNGS}


def answer_table(variants: Mapping[str, Summaries]) -> Table:
    """A table of the mean P(yes) under the full softmax, clean and steered."""
    table = Table(title="P(yes), clean → steered", padding=(0, 1))
    table.add_column("rung", no_wrap=True)
    for name in variants:
        table.add_column(name, justify="right", no_wrap=True)
    for rung in only_rungs(next(iter(variants.values()))):
        rows = [rows[rung] for rows in variants.values()]
        table.add_row(
            RUNGS[rung],
            *(f"{format_probability(r['p_yes_clean'])} → {format_probability(r['p_yes_steered'])}" for r in rows),
        )
    return table


def draw_ladder(variants: Mapping[str, Summaries]) -> Figure:
    """Draw AUROC, TPR and FPR of every rung and variant; FPR with its 95 % interval."""
    rungs = list(only_rungs(next(iter(variants.values()))))
    figure = Figure(figsize=(10, 1.2 + 0.62 * len(rungs)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    colours = dict(zip(variants, (CLEAN, ANOTHER, STEERED), strict=False))
    height = 0.8 / len(variants)
    for panel, (key, title, limit) in zip(
        panels, (("auroc", "AUROC", LOWEST_AUROC), ("tpr", "TPR", LOWEST_TPR), ("fpr", "FPR", HIGHEST_FPR)), strict=True
    ):
        for lane, (name, rows) in enumerate(variants.items()):
            places = np.arange(len(rungs)) + height * (lane - (len(variants) - 1) / 2)
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
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(variants), frameon=False)
    return figure
