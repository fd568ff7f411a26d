"""A run with several tasks, through the command line: losses, results, the exported adapter, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import contexts_file

from introspection_lit.cli import main
from introspection_lit.steering.extraction import CONCEPTS
from introspection_lit.trials.test_sets import CHOICES

OWN = "localisation: {pairs: 4, early: 0.5}, comparison: {pairs: 2}, identification: {pairs: 2}"
TASKS = f"{{detection: {{questions: 2, early: 0.5}}, factual: {{}}, reading: {{early: 0.5}}, {OWN}, "
TASKS += "plain_text: {questions: 0.5, weight: 0.3}}"
# A step has all kinds of pairs; and enough concepts and short lines to choose from.
SIZES = ["--data.batch_size", "64", "--data.eval_batch_size", "64", "--data.validation_trials", "128"]
SIZES += ["--data.concepts", f"[{', '.join(CONCEPTS[:12])}]"]
MODEL = ["--model.base.name_or_path", "random:tiny"]
ASKED = ("codes", "newcodes", "facts", "facts_bare", "reading")
SETS = ["--data.test_trials", f"{{heldout: 8, swapped: 8, {', '.join(f'{name}: 16' for name in (*ASKED, *CHOICES))}}}"]
SCORED = ("codes", "facts", "reading", "halves", "identification")
EVIDENCE = ["--evidence.enabled", "true", "--evidence.sets", f"[{', '.join(SCORED)}]", "--evidence.report", "true"]
EVIDENCE += [f"--evidence.{name}=0" for name in ("probe_trials", "lens_trials", "texts", "facts")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two epochs of two steps with its test; and how to make another."""
    root = tmp_path_factory.mktemp("tasks")
    contexts = contexts_file(root / "short.jsonl", chat=40, advice=40, arithmetic=40, chinese=40, csv=4)
    some_contexts = ["--data.contexts", contexts, "--data.validation_kinds", "[csv]"]

    def command(name: str, *more: str, subcommand: str = "fit") -> Path:
        words = [*MODEL, *some_contexts, *SIZES, *SETS, *EVIDENCE, "--trainer.deterministic", "true"]
        saved = ["--trainer.logger.init_args.save_dir", str(root), "--trainer.logger.init_args.name", name]
        return Path(main([subcommand, "--config", CONFIG, *words, *saved, *more]).trainer.log_dir)

    trained = ["--data.tasks", TASKS, "--data.trials_per_epoch", "128", "--checkpoint.save_top_k", "-1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pytest"])
        folder = command("whole", *trained, "--test_after_fit", "true")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return SimpleNamespace(folder=folder, results=results, command=command, trained=trained)


def curves(folder: Path) -> dict[str, list[float]]:
    """The scalars of TensorBoard, by name."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_each_tasks_loss_is_logged_and_they_add_up(run: SimpleNamespace) -> None:
    """In training and validation; before the first step the predictions of plain text have not changed."""
    logged = curves(run.folder)
    parts = ("detection", "factual", "reading", "localisation", "comparison", "identification", "plain_text")
    for split, steps, names in (("train", 4, (*parts, "early")), ("validation", 2, parts)):
        assert all(len(logged[f"{split}/loss_{part}"]) == steps for part in names)
    assert "validation/loss_early" not in logged
    for step in range(4):
        total = sum(logged[f"train/loss_{part}"][step] for part in (*parts, "early"))
        assert logged["train/loss"][step] == pytest.approx(total, rel=1e-5)
    assert logged["train/loss_plain_text"][0] == pytest.approx(0, abs=1e-6)
    assert logged["train/loss_detection"][0] > 1  # a random model gives the answers hardly any probability
    selected = [torch.exp(-torch.tensor(loss)).item() for loss in logged["validation/loss"]]
    assert logged["validation/selection"] == pytest.approx(selected, rel=1e-5)


def test_results_say_for_each_observer_whether_it_answers(run: SimpleNamespace) -> None:
    """Adapter and untrained model where they scored a set; the other sets have the adapter's row alone."""
    rows = {(row["set"], row["observer"]): row for row in run.results["evidence"]["tasks"]}
    others = [(name, "untrained") for name in ("codes", "facts", "reading")]
    adapter = [(name, "adapter") for name in ASKED]
    assert set(rows) == {*others, *adapter}
    for (name, observer), row in rows.items():
        assert row["n"] == 16
        if observer == "adapter":
            assert row["auroc"] == pytest.approx(run.results["sets"][name]["auroc"])
    assert all("both_right" in rows[name, "adapter"] for name in ("codes", "newcodes"))
    assert "accuracy" in rows["facts", "adapter"]


def test_exported_adapter_brings_its_lead_in(run: SimpleNamespace) -> None:
    """Its description records it, with the tasks; tested by itself, it is asked with it."""
    description = json.loads((run.folder / "adapter" / "introspection.json").read_text(encoding="utf-8"))
    assert description["options"]["data.lead_in"] == "Introspection query:"
    assert description["question"][0].startswith("Introspection query: ")
    assert description["trained_on"]["tasks"] == [
        ["detection", 2, 1.0, 0.5], ["factual", 1, 1.0], ["reading", 1, 1.0, 0.5], ["localisation", 1, 1.0, 0.5],
        ["comparison", 1, 1.0], ["identification", 1, 1.0], ["plain_text", 0.5, 0.3],
    ]  # fmt: skip


def test_choices_are_counted(run: SimpleNamespace) -> None:
    """Against the rows of trials.jsonl; the report shows them."""
    trials = [json.loads(line) for line in (run.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = {(row["set"], row["observer"]): row for row in run.results["evidence"]["choices"]}
    assert set(rows) == {(name, "adapter") for name in CHOICES} | {("halves", "untrained"), ("identification", "untrained")}
    for (name, observer), row in rows.items():
        asked = [trial for trial in trials if trial["split"] == name]
        assert row["n"] == len(asked) == 16
        assert row["accuracy"] == np.mean([trial["given"][observer] == trial["right"] for trial in asked])
        assert row["chance"] == {"halves": 0.5, "lines": 0.25, "comparison": 0.5}.get(name, 0.1)
        for trial in asked:  # the score is the margin of the right answer, or the log-odds of the first half
            right = trial["given"][observer] == trial["right"]
            first = trial["right"] == 0 if len(trial["answers"]) == 2 else True
            assert (trial["scores"][observer] > 0) == (right == first)
    assert sum(count for _, _, count in rows["identification", "adapter"]["confusion"]) == 16
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Which part, which concept" in page
    assert "Concept added and concept answered by digit or letter: untrained" in page


@pytest.mark.slow
def test_adapter_alone_has_the_results_of_its_run(run: SimpleNamespace) -> None:
    """With the lead-in that it was trained with; without, a warning says so."""
    bank = ["--data.bank", str(run.folder / "vectors.safetensors"), "--data.lead_in", "Introspection query:"]
    folder = run.command("alone", *bank, "--model.adapter", str(run.folder / "adapter"), subcommand="test")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name, row in run.results["sets"].items():
        assert results["sets"][name]["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
    with pytest.warns(UserWarning, match="lead_in is 'another', in training it was 'Introspection query:'"):
        run.command("bare", *bank[:2], "--model.adapter", str(run.folder / "adapter"), subcommand="test")


@pytest.mark.slow
def test_resumed_run_ends_with_the_same_bits(run: SimpleNamespace) -> None:
    """From the end of the first epoch; other tasks are refused."""
    checkpoints = run.folder / "checkpoints"
    bank = ["--data.bank", str(run.folder / "vectors.safetensors")]
    resumed = run.command("resumed", *run.trained, *bank, "--ckpt_path", str(checkpoints / "best-step2.ckpt"))
    ends: list[dict[str, Any]] = [
        torch.load(folder / "best-step4.ckpt", weights_only=True) for folder in (checkpoints, resumed / "checkpoints")
    ]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    other = [*run.trained[2:], "--data.tasks", "{detection: {questions: 2}, factual: {questions: 2}}"]
    with pytest.raises(SystemExit):
        run.command("other", *other, *bank, "--ckpt_path", str(checkpoints / "best-step2.ckpt"))


def test_steered_caches_do_not_count_as_clean(run: SimpleNamespace) -> None:
    """Where a half or a concept is named, both caches of a pair are steered."""
    trials = [json.loads(line) for line in (run.folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    usual = [row for row in trials if not row["steered"] and row["split"] not in CHOICES]
    clean = {(row["context_key"], row["question_text"]) for row in usual}
    assert run.results["n_clean_distinct_total"] == len(clean)
    assert set(run.results["sets"]["halves"]) == {"accuracy", "mass", "n"}


@pytest.mark.slow
def test_trials_of_all_tasks_can_be_predicted(run: SimpleNamespace) -> None:
    """A training trial alone, as the message about a diverged run says; and choices say what was answered."""
    checkpoint = str(run.folder / "checkpoints" / "best-step4.ckpt")
    saved = [*run.trained, "--data.bank", str(run.folder / "vectors.safetensors"), "--ckpt_path", checkpoint]

    def predictions(name: str, *more: str) -> list[dict[str, Any]]:
        folder = run.command(name, *saved, *more, subcommand="predict")
        return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]

    assert len(predictions("replayed", "--data.replay", "[train:1, train:2, train:3]")) == 3
    for row in predictions("predicted", "--data.test_trials", "{codes: 16, lines: 16}"):
        assert ("given" in row, "decision" in row) == ((True, False) if row["split"] == "lines" else (False, True))


@pytest.mark.slow
def test_a_step_that_diverges_names_a_trial(run: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trials are run again one by one, with their references and texts."""
    with pytest.raises(SystemExit):
        run.command("diverged", *run.trained, "--model.learning_rate", "1e30")
    assert "training has diverged" in capsys.readouterr().err
