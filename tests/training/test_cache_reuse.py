"""What a run reuses of its prefills: less is computed, and what is learned and scored stays the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import main
from introspection_lit.training.cache_reuse import answer_references
from introspection_lit.training.callbacks import adapter_export
from introspection_lit.training.module import IntrospectionModule

OFF = ["--data.reuse.clean", "false", "--data.reuse.layers", "false"]


@pytest.fixture(scope="module")
def fit(tiny: Path, few_contexts: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """Trains on the few contexts, once for each set of options; counts the rows that go through layers in prefills."""
    configure = IntrospectionModule.configure_model
    data = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]", "--data.trials_per_epoch", "24"]
    base = ["--model.base.name_or_path", str(tiny), "--data.test_trials", "{heldout: 8}", *data]

    @cache
    def run(*options: str) -> SimpleNamespace:
        rows: list[int] = []

        def configure_and_count(self: IntrospectionModule) -> None:
            def count(layer: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
                measured = self.trainer.datamodule.bank is not None
                if measured and self.trainer.training and not torch.is_grad_enabled():
                    rows.append(len(args[0]))

            fresh = not self.layers
            configure(self)
            for layer in self.layers if fresh else ():
                layer.register_forward_hook(count)

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("run"))
            patch.setattr(IntrospectionModule, "configure_model", configure_and_count)
            patch.setattr(adapter_export, "check_export", lambda *_: None)  # its rows are not training's
            fitting = ["fit", "--config", CONFIG, "--test_after_fit", "true", "--checkpoint.save_top_k", "-1"]
            cli = main([*fitting, *base, *options])
            folder, kept = Path(cli.trainer.log_dir).resolve(), cli.datamodule.prefill.contexts_kept
            return SimpleNamespace(cli=cli, rows=sum(rows), kept=kept, folder=folder)

    return run


def adapter_of(run: SimpleNamespace) -> dict[str, torch.Tensor]:
    """The adapter at the end of a run."""
    return torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


ONE_ALONE = [["--data.reuse.clean", "false"], ["--data.reuse.layers", "false"]]


@pytest.mark.parametrize("options", [[], *(pytest.param(options, marks=pytest.mark.slow) for options in ONE_ALONE)])
def test_run_learns_the_same_with_less_work(fit: Callable[..., SimpleNamespace], options: list[str]) -> None:
    """Each saving alone and both together: fewer rows go through the layers; adapter and scores as without."""
    plain, ours = fit(*OFF), fit(*options)
    assert plain.kept == 0
    assert (ours.kept > 0) == ("--data.reuse.clean" not in options)
    assert ours.rows < (0.9 if options else 0.7) * plain.rows
    expected = adapter_of(plain)
    for name, tensor in adapter_of(ours).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=0)
    for split, summary in plain.cli.model.summaries.items():
        assert ours.cli.model.summaries[split]["auroc"] == pytest.approx(summary["auroc"], abs=1e-6), split
        assert ours.cli.model.summaries[split]["mass"] == pytest.approx(summary["mass"], abs=1e-4), split


def test_resume_is_exact_with_kept_caches(fit: Callable[..., SimpleNamespace]) -> None:
    """A resumed run starts with nothing kept, and still ends with the same bits."""
    whole = fit()
    assert whole.kept
    resumed = fit("--ckpt_path", str(whole.folder / "checkpoints" / "best-step6.ckpt"))
    assert resumed.cli.trainer.global_step == whole.cli.trainer.global_step == 12
    assert resumed.kept
    expected = adapter_of(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_of(resumed).items())


def test_keeps_nothing_that_does_not_pay(fit: Callable[..., SimpleNamespace]) -> None:
    """Few trials for many contexts, or caches that the adapter writes, which change with every step."""
    untested = ["--test_after_fit", "false", "--trainer.max_epochs", "1"]
    assert fit("--data.trials_per_epoch", "8", *untested).kept == 0
    assert fit("--data.prefill_adapter", "true", *untested).kept == 0


def test_settings_are_checked(fit: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded."""
    with pytest.raises(SystemExit):
        fit("--data.reuse.gib", "-1")
    assert "data.reuse: got gib -1.0 and group 16" in capsys.readouterr().err


def test_nothing_is_switched_where_there_are_no_references() -> None:
    """A batch of detection alone has none: the model is not looked at."""
    batch: Any = SimpleNamespace(references=None, texts=None)
    untouched: Any = object()  # whatever is read of it raises an error
    answer_references(untouched, untouched, batch)
