"""What a run reuses of its prefills: less is computed, and what is learned and scored stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from project_paths import CONFIG

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.training.module import IntrospectionModule

OFF = ["--data.reuse.clean", "false", "--data.reuse.layers", "false"]


@pytest.fixture
def fit(tiny: Path, few_contexts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Trains on the few contexts and counts the rows that go through each decoder layer in prefills."""
    monkeypatch.chdir(tmp_path)

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

        configure = IntrospectionModule.configure_model
        monkeypatch.setattr(IntrospectionModule, "configure_model", configure_and_count)
        data = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]", "--data.trials_per_epoch", "24"]
        base = ["--model.base.name_or_path", str(tiny), "--data.test_trials", "{heldout: 8}", *data]
        cli = main(
            ["fit", "--config", CONFIG, "--test_after_fit", "true", "--checkpoint.save_top_k", "-1", *base, *options]
        )
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        return SimpleNamespace(cli=cli, rows=sum(rows), kept=cli.datamodule.prefill.contexts_kept)

    return run


def adapter_of(cli: IntrospectionCLI) -> dict[str, torch.Tensor]:
    """The adapter at the end of a run."""
    return torch.load(Path(cli.trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


ONE_ALONE = [["--data.reuse.clean", "false"], ["--data.reuse.layers", "false"]]


@pytest.mark.parametrize("options", [[], *(pytest.param(options, marks=pytest.mark.slow) for options in ONE_ALONE)])
def test_run_learns_the_same_with_less_work(fit: Callable[..., SimpleNamespace], options: list[str]) -> None:
    """Each saving alone and both together: fewer rows go through the layers; adapter and scores as without."""
    plain, ours = fit(*OFF), fit(*options)
    assert plain.kept == 0
    assert (ours.kept > 0) == ("--data.reuse.clean" not in options)
    assert ours.rows < (0.9 if options else 0.7) * plain.rows
    expected = adapter_of(plain.cli)
    for name, tensor in adapter_of(ours.cli).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=0)
    for split, summary in plain.cli.model.summaries.items():
        assert ours.cli.model.summaries[split]["auroc"] == pytest.approx(summary["auroc"], abs=1e-6), split
        assert ours.cli.model.summaries[split]["mass"] == pytest.approx(summary["mass"], abs=1e-4), split


def test_resume_is_exact_with_kept_caches(fit: Callable[..., SimpleNamespace]) -> None:
    """A resumed run starts with nothing kept, and still ends with the same bits."""
    whole = fit()
    assert whole.kept
    resumed = fit("--ckpt_path", str(Path("lightning_logs/default/version_0/checkpoints/best-step6.ckpt")))
    assert resumed.cli.trainer.global_step == whole.cli.trainer.global_step == 12
    assert resumed.kept
    expected = adapter_of(whole.cli)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_of(resumed.cli).items())


def test_keeps_nothing_that_does_not_pay(fit: Callable[..., SimpleNamespace]) -> None:
    """Few trials for many contexts, or caches that the adapter writes, which change with every step."""
    assert fit("--data.trials_per_epoch", "8").kept == 0
    assert fit("--data.prefill_adapter", "true").kept == 0


def test_settings_are_checked(fit: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded."""
    with pytest.raises(SystemExit):
        fit("--data.reuse.gib", "-1")
    assert "data.reuse: got gib -1.0 and group 16" in capsys.readouterr().err
