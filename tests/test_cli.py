"""The command line end to end, in this process, on a tiny model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from project_paths import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM
from two_processes import environment_of_processes

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.steering.caches import fork
from introspection_lit.steering.prefill import position_ids, steered_cache
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.training.checkpoint_files import read_checkpoint
from introspection_lit.trials.batch import TrialBatch

FIELDS = {
    "auroc", "accuracy", "tpr", "fpr", "fpr_interval", "tpr_at_1pct_fpr", "dprime", "mass", "n_steered", "n_clean",
    "n_clean_distinct", "threshold", "p_yes_clean", "p_yes_steered",
}  # fmt: skip


@pytest.fixture
def run(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., IntrospectionCLI]:
    """Runs a subcommand on the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(subcommand: str, *options: str) -> IntrospectionCLI:
        return main([subcommand, "--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *options])

    return command


@pytest.fixture(scope="module")
def fitted(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[IntrospectionCLI, Path]:
    """A fit with the test after it, and its run folder."""
    root = tmp_path_factory.mktemp("fit")
    logger = f"--trainer.logger.init_args.save_dir={root}"
    arguments = ["fit", "--config", CONFIG, "--model.base.name_or_path", str(tiny), "--test_after_fit", "true", logger]
    cli = main([*arguments, *some_contexts, "--checkpoint.save_top_k", "-1"])  # keeps the first epoch's, to resume from
    return cli, root / "default" / "version_0"


def checkpoint_of(folder: Path) -> str:
    """The last checkpoint of a run."""
    return str(folder / "checkpoints" / "last.ckpt")


def test_fit_leaves_everything_behind(fitted: tuple[IntrospectionCLI, Path]) -> None:
    """Configuration, vectors, checkpoints, adapter, results with all fields, a figure."""
    _, folder = fitted
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "vectors.safetensors", "checkpoints", "adapter", "results.json", "log_odds.png"} <= names
    assert not [name for name in names if "unfinished" in name or name.startswith("tmp")]
    results = json.loads((folder / "results.json").read_text())
    assert set(results["sets"]) == {"seen", "heldout", "concept", "newkinds", "newquestions"}
    for row in results["sets"].values():
        assert set(row) == FIELDS
        assert row["n_steered"] == row["n_clean"]
        assert row["threshold"] == results["threshold"]
    assert results["sets"]["newkinds"]["n_clean_distinct"] == 8
    assert {"command", "commit", "versions", "hardware", "seed", "checkpoint"} <= set(results)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["data"]["train_vectors"], config["trainer"]["gradient_clip_val"]) == (4, 1.0)


def test_tensorboard_gets_the_curves_and_the_figure(fitted: tuple[IntrospectionCLI, Path]) -> None:
    """Loss, gradients, AUROC, TPR, FPR, mass, learning rate, speed; a histogram at each validation; final metrics."""
    _, folder = fitted
    events = EventAccumulator(str(folder)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {f"{s}/{m}" for s in ("train", "validation", "heldout") for m in ("auroc", "tpr", "fpr", "mass")} <= scalars
    assert {"train/loss", "validation/loss", "train/gradient_norm", "train/trials_per_second"} <= scalars
    assert {"lr-AdamW", "hp/validation_auroc"} <= scalars
    rates = [event.value for event in events.Scalars("lr-AdamW")]
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] < max(rates) > rates[-1]  # warm-up, then decay
    assert events.Tags()["images"] == ["validation/log_odds"]
    assert len(events.Images("validation/log_odds")) == 2


def test_checkpoint_holds_the_adapter_only(fitted: tuple[IntrospectionCLI, Path]) -> None:
    """No base weights, and it loads without unpickling anything."""
    cli, folder = fitted
    checkpoint = torch.load(checkpoint_of(folder), weights_only=True)
    expected = [name for name, _ in cli.model.named_parameters() if "lora_" in name]
    assert sorted(checkpoint["state_dict"]) == sorted(expected)
    assert "threshold" in checkpoint["introspection"]


def test_resume_equals_an_uninterrupted_run(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """From the checkpoint of the first epoch of two, on to the end: the weights of two epochs in one go, bit by bit."""
    whole, folder = fitted
    first_epoch = folder / "checkpoints" / "best-step3.ckpt"
    resumed = run("fit", "--ckpt_path", str(first_epoch))
    assert resumed.trainer.global_step == whole.trainer.global_step == 6
    ends = [
        torch.load(path, weights_only=True)
        for path in (checkpoint_of(folder), resumed.trainer.checkpoint_callback.last_model_path)
    ]
    began = torch.load(first_epoch, weights_only=True)["state_dict"]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name])
        assert not torch.equal(tensor, began[name])
    assert ends[0]["introspection"] == ends[1]["introspection"]


def test_separate_test_equals_the_test_after_fit(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """`test --ckpt_path` of the best checkpoint in a new process gives the numbers that fit printed."""
    cli, folder = fitted
    run("test", "--ckpt_path", cli.trainer.checkpoint_callback.best_model_path)
    again = json.loads(Path("lightning_logs/default/version_0/results.json").read_text())
    assert again["sets"] == json.loads((folder / "results.json").read_text())["sets"]


def test_validate_keeps_the_stored_threshold(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """`validate` reports at the threshold that fit chose."""
    _, folder = fitted
    stored = torch.load(checkpoint_of(folder), weights_only=True)["introspection"]["threshold"]
    cli = run("validate", "--ckpt_path", checkpoint_of(folder))
    assert cli.trainer.callback_metrics["validation/threshold"].item() == pytest.approx(stored)


def test_predict_writes_a_row_per_trial(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """Everything that defines the trial, its score and the decision; the rows reproduce the results."""
    _, folder = fitted
    run("predict", "--ckpt_path", fitted[0].trainer.checkpoint_callback.best_model_path)
    rows = [
        json.loads(line) for line in Path("lightning_logs/default/version_0/predictions.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 8 + 8 + 8 + 16 + 8
    results = json.loads((folder / "results.json").read_text())["sets"]
    for name, expected in results.items():
        steered = [row for row in rows if row["split"] == name and row["steered"]]
        assert sum(row["decision"] for row in steered) / len(steered) == pytest.approx(expected["tpr"])
        assert all(row["decision"] == (row["log_odds"] > expected["threshold"]) for row in steered)
    row = next(row for row in rows if row["split"] == "concept" and row["steered"])
    assert row["vector_name"] in ("bread", "cats", "the ocean")
    assert {"number", "kind", "context_key", "question_text", "band", "strength", "mass", "log_odds"} <= set(row)


def test_exported_adapter_gives_the_same_scores_through_plain_peft(fitted: tuple, tiny: Path) -> None:
    """Without this package's module: transformers, PeftModel.from_pretrained, and the vectors file."""
    cli, folder = fitted
    description = json.loads((folder / "adapter" / "introspection.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    best = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert description["threshold"] == best["introspection"]["threshold"]
    assert description["step"] == best["global_step"]
    assert (folder / "adapter" / "README.md").read_text().startswith("---\nbase_model:")

    data = cli.datamodule
    batch: TrialBatch = next(iter(data.test_dataloader()[0]))
    assert torch.equal(VectorBank.load(folder / "vectors.safetensors").directions["train"], data.bank.directions["train"])
    cli.model.load_state_dict(best["state_dict"], strict=False)
    cli.model.eval()
    batch.cache = steered_cache(
        peft, peft, list(base.model.layers), batch.context_ids, batch.context_mask, batch.intervention
    )
    with torch.no_grad():
        ours = cli.model.answer_logits(batch)
        whole = torch.cat([batch.context_mask, batch.question_mask], dim=1)
        theirs = peft(
            input_ids=batch.question_ids,
            attention_mask=whole,
            position_ids=position_ids(whole)[:, batch.context_mask.shape[1] :],
            past_key_values=fork(batch.cache),
        ).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


SETTINGS = {
    "bf16-mixed": ["--trainer.precision", "bf16-mixed", "--model.base.dtype", "bfloat16"],
    "fast_dev_run": ["--trainer.fast_dev_run", "true"],
}
MORE_SETTINGS = {
    "bf16-true": ["--trainer.precision", "bf16-true"],
    "accumulate": [
        "--trainer.accumulate_grad_batches",
        "2",
        "--trainer.val_check_interval",
        "1",
        "--data.num_workers",
        "1",
    ],
    "no logger": ["--trainer.logger", "false", "--data.prefill_adapter", "true", "--model.loss", "pairwise"],
    "no progress bar": ["--trainer.enable_progress_bar", "false"],
    "sanity": ["--trainer.num_sanity_val_steps", "1", "--data.bands", "[all, [1, 3]]", "--data.strength_unit", "absolute"],
}


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in SETTINGS.items()),
        *(pytest.param(options, id=name, marks=pytest.mark.slow) for name, options in MORE_SETTINGS.items()),
    ],
)
def test_fit_and_test_with_other_settings(run: Callable[..., IntrospectionCLI], options: list[str]) -> None:
    """Precisions, accumulation, validation in mid-epoch, workers, no logger, a dev run, sanity steps."""
    cli = run("fit", "--test_after_fit", "true", *options)
    assert 0 <= cli.model.summaries["validation"]["auroc"] <= 1
    if "--trainer.fast_dev_run" not in options:
        assert set(cli.model.summaries) >= set(cli.datamodule.options.test_sets)


def test_qlora_on_the_cpu(run: Callable[..., IntrospectionCLI], tiny_folder: Callable[[str], Path]) -> None:
    """NF4 under bf16-mixed with bfloat16 storage, as the configs for the large models have it: the adapter learns."""
    base = ["--model.base.name_or_path", str(tiny_folder("qwen2-wide")), "--model.base.quantization", "nf4"]
    cli = run("fit", *base, "--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-mixed")
    checkpoint = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    moved = [tensor.abs().sum() > 0 for name, tensor in checkpoint["state_dict"].items() if "lora_B" in name]
    assert len(moved) == 24
    assert all(moved)


@pytest.mark.slow
def test_two_processes_share_the_work(tiny: Path, some_contexts: list[str], fitted: tuple, tmp_path: Path) -> None:
    """DDP, started by Lightning's own launcher: the test sets hold the same trials, and score as with one process."""
    best = fitted[0].trainer.checkpoint_callback.best_model_path
    words = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--model.base.name_or_path", str(tiny), *some_contexts]
    arguments = [sys.executable, "-m", "introspection_lit", "test", "--ckpt_path", best, "--config", CONFIG, *words]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment_of_processes(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    test = json.loads((tmp_path / "lightning_logs/default/version_0/results.json").read_text())
    alone = json.loads((fitted[1] / "results.json").read_text())
    for name, row in alone["sets"].items():
        interval = row.pop("fpr_interval")
        assert test["sets"][name].pop("fpr_interval") == pytest.approx(interval)
        assert test["sets"][name] == pytest.approx(row, abs=1e-4)
    assert test["n_clean_distinct_total"] == alone["n_clean_distinct_total"]


@pytest.mark.slow
def test_last_checkpoint_is_the_last(run: Callable[..., IntrospectionCLI]) -> None:
    """Also if it is worse than an earlier one: the score here falls with every step."""
    cli = run("fit", "--checkpoint.monitor", "step", "--checkpoint.mode", "min", "--checkpoint.save_top_k", "1")
    folder = Path(cli.trainer.log_dir) / "checkpoints"
    assert [path.name for path in folder.glob("best-*")] == ["best-step3.ckpt"]
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["epoch"]) == (6, 1)
    resumed = run(
        "fit", "--ckpt_path", str(folder / "last.ckpt"), "--trainer.max_epochs", "3", "--checkpoint.save_top_k", "1"
    )
    assert resumed.trainer.global_step == 9


def test_best_score_survives_a_resume(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """A worse validation after the resume does not replace a better checkpoint from before it."""
    Path("older").mkdir()
    first_epoch = Path(shutil.copy(fitted[1] / "checkpoints" / "best-step3.ckpt", "older"))
    checkpoint = read_checkpoint(first_epoch)
    state = next(value for key, value in checkpoint["callbacks"].items() if "Checkpoint" in key)
    state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)  # no AUROC can beat this one
    state["best_k_models"] = {str(first_epoch): torch.tensor(2.0)}
    torch.save(checkpoint, "older/doctored.ckpt")
    resumed = run("fit", "--ckpt_path", "older/doctored.ckpt", "--checkpoint.save_top_k", "1")
    saver = resumed.trainer.checkpoint_callback
    assert Path(saver.best_model_path) == Path(saver.dirpath) / first_epoch.name  # a copy
    assert Path(saver.best_model_path).read_bytes() == first_epoch.read_bytes()


def test_moved_run_can_be_resumed(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """The best checkpoint so far is not where it was: a warning, and the best of the rest is exported."""
    checkpoint = read_checkpoint(fitted[1] / "checkpoints" / "best-step3.ckpt")
    state = next(value for key, value in checkpoint["callbacks"].items() if "Checkpoint" in key)
    state["best_model_path"], state["best_k_models"] = "moved/best.ckpt", {"moved/best.ckpt": torch.tensor(2.0)}
    state["best_model_score"] = state["kth_value"] = torch.tensor(2.0)
    torch.save(checkpoint, "moved.ckpt")
    with pytest.warns(UserWarning, match="not there any more: moved/best"):
        resumed = run("fit", "--ckpt_path", "moved.ckpt")
    assert Path(resumed.trainer.checkpoint_callback.best_model_path).is_file()
    assert Path("lightning_logs/default/version_0/adapter/introspection.json").is_file()


def test_damaged_adapter_is_refused(
    run: Callable[..., IntrospectionCLI], fitted: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading is not strict about the base weights, so it must be about the adapter's."""
    checkpoint = read_checkpoint(checkpoint_of(fitted[1]))
    checkpoint["state_dict"] = dict(list(checkpoint["state_dict"].items())[:3])
    torch.save(checkpoint, "three.ckpt")
    with pytest.raises(SystemExit):
        run("test", "--ckpt_path", "three.ckpt")
    assert "holds 3 of the adapter's 48 tensors" in capsys.readouterr().err


def test_test_unlike_training_warns(run: Callable[..., IntrospectionCLI], fitted: tuple) -> None:
    """Nothing leaks, but the stored threshold belongs to the other way of asking."""
    with pytest.warns(UserWarning, match="prefill_adapter is True, in training it was False"):
        run("test", "--ckpt_path", checkpoint_of(fitted[1]), "--data.prefill_adapter", "true")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fit", "--model.learning_rate", "1e30"], "diverged"),
        (["test", "--data.strengths", "[1e38, 1e38]"], "data.strengths: got [1e+38, 1e+38]"),
    ],
)
def test_numbers_that_mean_nothing_are_not_reported(
    run: Callable[..., IntrospectionCLI], command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A nan outranks every number: the AUROC of diverged scores would be 1.000."""
    with pytest.raises(SystemExit):
        run(*command)
    assert message in capsys.readouterr().err
    assert not list(Path().rglob("results.json"))


def test_unknown_target_module_is_a_clean_error(
    run: Callable[..., IntrospectionCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before the model is loaded; with those that it has."""
    with pytest.raises(SystemExit):
        run("fit", "--model.lora.target_modules", "[nosuch]")
    printed = capsys.readouterr().err
    assert "got ['nosuch']" in printed
    assert "such as q_proj, k_proj, v_proj, o_proj" in printed


def test_workers_change_nothing(run: Callable[..., IntrospectionCLI]) -> None:
    """Two worker processes give the trials and tensors of none."""
    cli = run("validate", "--data.validation_trials", "24")
    inside = list(cli.datamodule.val_dataloader())
    run = cli.datamodule.run
    run.options = replace(run.options, num_workers=2)
    outside = list(cli.datamodule.val_dataloader())
    for a, b in zip(inside, outside, strict=True):
        assert a.trials == b.trials
        assert torch.equal(a.context_ids, b.context_ids)
        assert torch.equal(a.intervention.direction, b.intervention.direction)


def test_untrained_model_can_be_tested(run: Callable[..., IntrospectionCLI]) -> None:
    """Without a checkpoint, `test` is the baseline: an adapter that changes nothing, threshold 0."""
    run("test", "--data.test_trials", '{"heldout": 8}')
    results = json.loads(Path("lightning_logs/default/version_0/results.json").read_text())
    assert (results["checkpoint"], results["threshold"]) == (None, 0.0)


@pytest.mark.parametrize(
    ("command", "messages"),
    [
        # Another seed deals the contexts anew: the held-out ones include training contexts of the checkpoint.
        (
            ["test", "--data.seed", "1"],
            ["test set 'heldout': ", "contexts were trained on", "vectors were not trained on", "data.seed"],
        ),
        # The record of what was trained on would be wrong.
        (["fit", "--data.seed", "1"], ["was trained on other contexts"]),
        # The command line wins over what is in the checkpoint, so a mismatch must be an error.
        (["test", "--model.lora.r", "4"], ["the checkpoint has lora"]),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused(
    run: Callable[..., IntrospectionCLI],
    fitted: tuple,
    command: list[str],
    messages: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Testing on what was trained on, resuming with other data, an adapter of another shape."""
    with pytest.raises(SystemExit):
        run(*command, "--ckpt_path", checkpoint_of(fitted[1]))
    error = capsys.readouterr().err
    for message in messages:
        assert message in error


def test_print_config_merges_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A later -c wins over an earlier one, and --print_config shows the result without running."""
    (tmp_path / "more.yaml").write_text("data: {train_vectors: 7}\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", CONFIG, "-c", str(tmp_path / "more.yaml"), "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["data"]["train_vectors"], printed["data"]["batch_size"]) == (7, 4)


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_help(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option is documented from the docstrings."""
    with pytest.raises(SystemExit) as stop:
        main([subcommand, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--model.base", "--model.lora", "--data.strengths", "--data.bands", "--ckpt_path"):
        assert option in text
    assert "Lowest and highest strength" in text
