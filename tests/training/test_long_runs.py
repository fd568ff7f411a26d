"""A run with long conversations, through the command line."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from project_paths import CONFIG
from rich.console import Console

from introspection_lit.cli import main
from introspection_lit.evaluation.trial_table import USUAL_SETS
from introspection_lit.training.callbacks.writers import results_table
from introspection_lit.training.datamodule import IntrospectionDataModule
from introspection_lit.trials.test_sets import LONG_SETS

LONG = "{share: 0.4, tokens: [100, 300], validation_tokens: [100, 500], exchanges: 4, test_tokens: [150, 300, 600]}"
OPTIONS = ["--model.base.name_or_path", "random:tiny", "--data.long", LONG, "--data.max_context_tokens", "150"]
OPTIONS += ["--data.test_trials", "{heldout: 8, long: 24, long_newkinds: 12}", "--test_after_fit", "true"]
OPTIONS += ["--evidence.enabled", "true", "--evidence.sets", "[long]", "--evidence.report", "true"]
OPTIONS += [f"--evidence.{name}=0" for name in ("probe_trials", "lens_trials", "texts", "facts")]


def test_the_table_of_results_fits_80_columns() -> None:
    """Whatever the name of a set that it shows."""
    row = dict.fromkeys(("auroc", "accuracy", "tpr", "fpr", "mass"), 1.0)
    row |= {"fpr_interval": [0.0, 1.0], "n_clean_distinct": 10_000}
    console = Console(width=80, file=StringIO())
    console.print(results_table(dict.fromkeys((*USUAL_SETS, *LONG_SETS), row)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert all(name in printed for name in LONG_SETS)


def test_a_run_reports_lengths_and_its_adapter_can_be_tested_again(
    tmp_path: Path, some_contexts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of both sets in every class, from batches of a pair; the same numbers from the adapter."""
    monkeypatch.setattr("sys.argv", ["pytest"])
    sizes: dict[str, set[int]] = {}
    transfer = IntrospectionDataModule.on_after_batch_transfer

    def noted(module: IntrospectionDataModule, batch: object, index: int) -> object:
        sizes.setdefault(batch.split, set()).add(len(batch.trials))  # type: ignore[attr-defined]
        return transfer(module, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(IntrospectionDataModule, "on_after_batch_transfer", noted)
    saved = ["--trainer.logger.init_args.save_dir", str(tmp_path), "--trainer.logger.init_args.name"]
    cli = main(["fit", "--config", CONFIG, *some_contexts, *OPTIONS, *saved, "run"])
    folder = Path(cli.trainer.log_dir)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = results["evidence"]["long"]
    assert found["trained"] == 300
    assert {(row["set"], row["tokens"][1]) for row in found["by_length"]} == {
        (name, most) for name in ("long", "long_newkinds") for most in (150, 300, 600)
    }
    assert {row["tokens"][0] for row in found["by_length"]} == {1, 151, 301}  # the shortest texts are in a class, too
    assert sizes["long"] == {2}
    assert max(sizes["validation"]) < max(sizes["heldout"])
    assert max(sizes["heldout"]) > 2
    assert "Long conversations" in (folder / "report.html").read_text(encoding="utf-8")
    assert results["long"]["test_tokens"] == [150, 300, 600]
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    most = re.search(r"conversations of up to (\d) exchanges and 300 tokens", card)
    assert most is not None
    assert 2 <= int(most[1]) <= 8
    again = main(
        ["test", "--config", str(folder / "config.yaml"), "--model.adapter", str(folder / "adapter"), *saved, "again"]
    )
    repeated = json.loads((Path(again.trainer.log_dir) / "results.json").read_text(encoding="utf-8"))
    assert repeated["sets"]["long"]["auroc"] == pytest.approx(results["sets"]["long"]["auroc"])
