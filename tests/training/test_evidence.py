"""The callback that gathers evidence, end to end: every observer's scores against runs that score the same trials alone."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from project_paths import CONFIG
from transformers import Cache

from introspection_lit.cli import IntrospectionCLI, main
from introspection_lit.contexts.context import BUILTIN
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.evaluation.cache_reader import READER
from introspection_lit.evaluation.logit_lens import summarise_lens
from introspection_lit.evaluation.observers import NORMS, PROBE, TEXT
from introspection_lit.evaluation.trial_table import ADAPTER, PLAIN_SETS
from introspection_lit.training.callbacks.evidence import UNTRAINED, WITH_INFO, Evidence

TOTALS = {
    "seen": 4,
    "heldout": 10,
    "concept": 4,
    "newkinds": 8,
    "newquestions": 4,
    "doses": 14,
    "doses_concept": 6,
    "flipped": 4,
    "scattered": 4,
    "vanishing": 4,
    "odd": 6,
    "swapped": 4,
    "factual": 8,
}
ASKED = ("heldout", "concept", "doses", "doses_concept")
INFO = 4
DATA = ["--data.test_trials", json.dumps(TOTALS), "--data.test_doses", "[0.5, 4.0]"]
LITTLE = ["--evidence.probe_trials", "32", "--evidence.lens_trials", "40", "--evidence.texts", "2", "--evidence.facts", "4"]
NOTHING = ["--evidence.probe_trials", "0", "--evidence.lens_trials", "0", "--evidence.texts", "0"]
LITTLE += ["--evidence.report", "false", "--evidence.reader_trials", "64"]
NOTHING += ["--evidence.report", "false"]
ALONE = ["--data.test_trials", json.dumps({name: TOTALS[name] for name in ASKED}), *DATA[2:]]
Scores = dict[tuple[str, int], dict[str, float]]


def launch(folder: Path, tiny: Path, command: str, *options: str) -> IntrospectionCLI:
    """Run a subcommand on a tiny model, in this process."""
    logger = ["--trainer.logger.init_args.save_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    evidence = ["--evidence.enabled", "true"] if command in ("fit", "test") else []
    return main([command, "--config", CONFIG, "--model.base.name_or_path", str(tiny), *logger, *evidence, *options])


def evidence_of(cli: IntrospectionCLI) -> Evidence:
    """The callback of a run."""
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, Evidence))


def results_of(folder: Path) -> dict:
    """What the first run in a folder has written."""
    return json.loads((folder / "default" / "version_0" / "results.json").read_text())


def said(scores: Scores, observer: str) -> dict[tuple[str, int], float]:
    """The scores of one observer, by trial."""
    return {trial: told[observer] for trial, told in scores.items() if observer in told}


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals are tested with the statistics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("introspection_lit.evaluation.analysis.RESAMPLES", 10)
        yield


@pytest.fixture(scope="module")
def fitted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A fit and the test of its best checkpoint, with every set and every observer."""
    folder = tmp_path_factory.mktemp("fitted")
    cli = launch(folder, tiny, "fit", "--test_after_fit", "true", *DATA, *LITTLE, "--evidence.info_trials", str(INFO))
    best = cli.trainer.checkpoint_callback.best_model_path
    evidence = evidence_of(cli)
    found = SimpleNamespace(scores=dict(evidence.scores), best=best, results=results_of(folder), folder=folder)
    return SimpleNamespace(**vars(found), cli=cli)


@pytest.fixture(scope="module")
def fresh(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scores]:
    """Tests an adapter that has not been trained, and gives the scores of all trials."""

    def run(*options: str, data: list[str] = ALONE) -> Scores:
        folder = tmp_path_factory.mktemp("fresh")
        return dict(evidence_of(launch(folder, tiny, "test", *data, *NOTHING, *options)).scores)

    return run


def test_every_trial_is_gathered_once(fitted: SimpleNamespace) -> None:
    """Those that only fill up batches are not; who was asked about which trials is as the options say."""
    assert sorted(fitted.scores) == sorted((name, n) for name, total in TOTALS.items() for n in range(total))
    for (name, number), told in fitted.scores.items():
        expected = {ADAPTER} | ({UNTRAINED, PROBE, NORMS, TEXT, READER} if name in ASKED else set())
        assert set(told) - {WITH_INFO} == expected
        assert (WITH_INFO in told) == (name in ASKED and number < INFO) or name.startswith("doses")
        assert all(type(value) is float and np.isfinite(value) for value in told.values())


def test_with_info_is_asked_about_clean_and_steered_trials(fitted: SimpleNamespace) -> None:
    """In every set, or there is nothing to compare: a plan may have all its clean trials first."""
    splits = fitted.cli.datamodule.splits
    for name in ASKED:
        labels = {
            splits[name].plan.trial(n).steered for (s, n), told in fitted.scores.items() if s == name and WITH_INFO in told
        }
        assert labels == {False, True}, name


def test_adapters_scores_equal_predictions(fitted: SimpleNamespace, tiny: Path, tmp_path: Path) -> None:
    """Trial by trial, what ``predict`` writes with the same checkpoint."""
    launch(tmp_path, tiny, "predict", "--ckpt_path", fitted.best, *DATA)
    lines = (tmp_path / "default" / "version_0" / "predictions.jsonl").read_text().splitlines()
    rows = {(row["split"], row["number"]): row["log_odds"] for row in map(json.loads, lines)}
    assert rows == pytest.approx(said(fitted.scores, ADAPTER), abs=1e-5)


def test_untrained_equals_a_test_of_a_fresh_adapter(fitted: SimpleNamespace, fresh: Callable[..., Scores]) -> None:
    """Trial by trial; and training has changed the adapter's."""
    untrained, adapter = said(fitted.scores, UNTRAINED), said(fitted.scores, ADAPTER)
    alone = said(fresh(), ADAPTER)
    assert len(untrained) == sum(TOTALS[name] for name in ASKED)
    assert untrained == pytest.approx({trial: alone[trial] for trial in untrained}, abs=1e-4)
    assert max(abs(adapter[trial] - untrained[trial]) for trial in untrained) > 0.1


@pytest.mark.slow
def test_with_info_equals_a_test_with_the_info_prompt(fitted: SimpleNamespace, fresh: Callable[..., Scores]) -> None:
    """Without an adapter, trial by trial."""
    informed = said(fitted.scores, WITH_INFO)
    informed = {trial: value for trial, value in informed.items() if trial[0] == "heldout"}
    alone = said(fresh("--data.info", "explained", data=["--data.test_trials", "{heldout: 10}"]), ADAPTER)
    assert len(informed) == INFO
    assert informed == pytest.approx({trial: alone[trial] for trial in informed}, abs=1e-4)


@pytest.mark.slow
def test_untrained_writes_its_own_caches(
    fitted: SimpleNamespace, fresh: Callable[..., Scores], tiny: Path, tmp_path: Path
) -> None:
    """With ``data.prefill_adapter`` the adapter's caches were written by the adapter, which the untrained model has not."""
    options = ["--data.test_trials", "{heldout: 10}", "--data.prefill_adapter", "true", "--evidence.untrained", "true"]
    cli = launch(tmp_path, tiny, "test", "--ckpt_path", fitted.best, *options, *NOTHING)
    untrained = said(evidence_of(cli).scores, UNTRAINED)
    alone = said(fresh(data=options), ADAPTER)
    assert untrained == pytest.approx(alone, abs=1e-4)


def test_results_hold_the_evidence(fitted: SimpleNamespace) -> None:
    """Everything that the report reads; as many validations as epochs; what was counted is what was asked."""
    found = fitted.results["evidence"]
    for key in (
        "curves",
        "detection_strength",
        "grid",
        "kinds",
        "lengths",
        "worst",
        "roc",
        "references",
        "controls",
        "factual",
        "odd",
    ):
        assert found[key], key
    assert set(found["observers"]) == {ADAPTER, UNTRAINED, WITH_INFO, PROBE, NORMS, TEXT, READER}
    assert set(found["histograms"]) >= {"heldout", "newkinds"}
    assert found["side_effects"]["facts"] == 4
    assert {row["name"] for row in found["controls"]} == {
        "flipped",
        "scattered",
        "vanishing",
        "odd",
        "swapped",
        "factual",
        "newquestions",
    }
    assert found["probe_trials"] >= 32
    assert found["reader_trials"] == 64
    training = found["training"]
    assert len(training["steps"]) == 2
    assert all(len(training[name]) == 2 for name in ("auroc", "tpr", "fpr", "mass", "threshold"))
    assert training["threshold"][training["steps"].index(training["steps"][-1])] is not None
    assert len(training["loss"]) == len(training["loss_steps"]) == 6
    leaks = found["leaks"]
    assert leaks["shared_messages"] == leaks["shared_questions"] == 0
    assert not leaks["unseen_kinds_in_training"]
    assert {"train / heldout", "train / concept", "train / validation"} <= set(leaks["vectors"])
    assert leaks["distinct_clean"]["heldout"] == fitted.results["sets"]["heldout"]["n_clean_distinct"]


def test_lengths_and_kinds_count_the_same_trials(fitted: SimpleNamespace) -> None:
    """Each context is of one kind and one length; the lengths are those of the tokens that the model reads."""
    found, splits = fitted.results["evidence"], fitted.cli.datamodule.run.splits
    written = fitted.folder / "default" / "version_0" / "trials.jsonl"
    for count in ("n_clean", "alarms", "n_steered"):
        assert sum(row[count] for row in found["lengths"]) == sum(row[count] for row in found["kinds"]) > 0
    assert sum(row["n_trained"] for row in found["lengths"]) <= len(splits["train"].contexts)
    tested = {
        len(splits[row["split"]].encoded(row["context"]).context_ids)
        for row in map(json.loads, written.read_text(encoding="utf-8").splitlines())
        if row["split"] in PLAIN_SETS
    }
    inside = [{n for n in tested if low <= n <= high} for low, high in (row["tokens"] for row in found["lengths"])]
    assert all(inside)
    assert set.union(*inside) == tested


def test_lens_reads_the_trials_of_the_set_and_no_others(fitted: SimpleNamespace) -> None:
    """The last layer's means are those of the scores; rows that only fill up a batch are left out."""
    lens = fitted.results["evidence"]["lens"]
    assert lens["layers"] == list(range(6))
    assert lens["n"] == TOTALS["heldout"]
    splits = fitted.cli.datamodule.splits
    for name, steered in (("clean", False), ("steered", True)):
        scores = [
            value
            for (split, number), value in said(fitted.scores, ADAPTER).items()
            if split == "heldout" and splits[split].plan.trial(number).steered == steered
        ]
        assert lens[name]["mean"][-1] == pytest.approx(np.mean(scores), abs=1e-4)
        assert lens[name]["low"][-1] == pytest.approx(np.quantile(scores, 0.25), abs=1e-4)


def caches() -> int:
    """How many caches are alive. Asks for types only: torch has things that warn when they are touched."""
    return sum(issubclass(type(thing), Cache) for thing in gc.get_objects())


@pytest.mark.slow
def test_a_second_test_starts_afresh_and_nothing_is_kept(tiny: Path, tmp_path: Path) -> None:
    """Other sets than before, none of the old trials; caches do not pile up while it runs."""

    class Caches(Callback):
        """Counts the caches alive."""

        most = 0

        def on_test_batch_end(self, *_: object, **__: object) -> None:
            gc.collect()
            self.most = max(self.most, caches())

    gc.collect()
    before = caches()
    cli = launch(
        tmp_path, tiny, "test", "--data.test_trials", "{heldout: 12, concept: 4}", *LITTLE, "--evidence.texts", "0"
    )
    evidence, counting = evidence_of(cli), Caches()
    first, layers = dict(evidence.scores), evidence.found["lens"]
    cli.trainer.callbacks.insert(0, counting)
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert evidence.scores == first
    assert len(first) == 16
    assert evidence.found["lens"] == layers
    assert counting.most - before <= 3


def test_disabled_it_gathers_nothing(tiny: Path, tmp_path: Path) -> None:
    """``results.json`` says so."""
    cli = launch(tmp_path, tiny, "test", "--evidence.enabled", "false", "--data.test_trials", "{heldout: 8}")
    assert not evidence_of(cli).scores
    assert results_of(tmp_path)["evidence"] is None
    assert not (tmp_path / "default" / "version_0" / "report.html").exists()


@pytest.fixture(scope="module")
def few_contexts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three contexts to test on: each comes again and again."""
    path = tmp_path_factory.mktemp("contexts") / "few.jsonl"
    few = load_contexts(BUILTIN)[3:30:9]
    rows = [{"kind": c.kind, "user": f"{c.user} Once more.", "assistant": c.turns[1].content} for c in few]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.slow
def test_trials_that_share_a_cache_are_scored_like_any_other(few_contexts: Path, tiny: Path, tmp_path: Path) -> None:
    """Clean trials of one context share its cache as soon as there are more trials than contexts, or several questions."""
    several = '["Were you tampered with? {yes} or {no}.", "Were you tampered with, or is all well? {yes} or {no}."]'
    options = ["--data.test_contexts", str(few_contexts), "--data.questions", several, *LITTLE]
    options += ["--evidence.info_trials", "12", "--data.test_trials", "{heldout: 12, doses: 12}", "--evidence.texts", "0"]
    together, alone = (
        evidence_of(launch(tmp_path / size, tiny, "test", *options, "--data.eval_batch_size", size)).scores
        for size in ("12", "2")
    )
    assert set(together) == set(alone)
    for trial, told in together.items():
        assert told == pytest.approx(alone[trial], abs=1e-3), trial


@pytest.mark.slow
def test_few_training_contexts_are_enough_for_the_observers(few_contexts: Path, tiny: Path, tmp_path: Path) -> None:
    """A training batch may hold a context twice, too."""
    rows = [{"kind": "chat", "user": f"Tell me about {n}.", "assistant": f"That is {n + 1} minus one."} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--data.contexts", str(tmp_path / "own.jsonl"), "--data.test_trials", "{heldout: 6, doses: 8}"]
    cli = launch(tmp_path, tiny, "test", *options, *LITTLE, "--data.batch_size", "48", "--evidence.probe_trials", "48")
    assert len(said(evidence_of(cli).scores, PROBE)) == 14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", ["--trainer.precision", "bf16-mixed", "--model.base.dtype", "float32"]),
        ("qwen2", ["--trainer.precision", "bf16-true", "--model.base.dtype", "bfloat16"]),
        (
            "qwen2-wide",
            ["--model.base.quantization", "nf4", "--model.base.dtype", "bfloat16", "--trainer.precision", "bf16-mixed"],
        ),
    ],
    ids=["bf16-mixed", "bf16-true", "nf4"],
)
def test_observers_work_under_the_precision_of_the_step(
    family: str, options: list[str], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A fresh adapter changes nothing: who is asked without it says the same to the bit, and so does the last layer."""
    sets = ["--data.test_trials", "{heldout: 12, doses: 8}"]
    cli = launch(tmp_path, tiny_folder(family), "test", *sets, *LITTLE, "--evidence.info_trials", "4", *options)
    evidence = evidence_of(cli)
    assert said(evidence.scores, UNTRAINED) == said(evidence.scores, ADAPTER)
    heldout = [value for (name, _), value in said(evidence.scores, ADAPTER).items() if name == "heldout"]
    lens = evidence.found["lens"]
    if lens["n"] == 12:
        means = (lens["clean"]["mean"][-1] + lens["steered"]["mean"][-1]) / 2
        assert means == pytest.approx(np.mean(heldout), rel=1e-2, abs=0.05)
    effects = evidence.found["side_effects"]["perplexity"]
    assert effects["change"] == pytest.approx(0, abs=1e-6)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "options",
    [{"probe_trials": 8}, {"facts": 3}, {"facts": 10**6}, {"info_trials": -1}, {"lens_trials": -1}, {"reader_trials": -1}],
)
def test_options_that_cannot_be(options: dict[str, int]) -> None:
    """The message says what was given and what is expected."""
    (problem,) = Evidence(**options).problems()  # type: ignore[arg-type]
    assert "evidence: got" in problem
    assert not Evidence(enabled=False, **options).problems()  # type: ignore[arg-type]


def test_problems_of_the_options_are_found_before_the_model_is_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Together with all others; a set that does not exist is one of them."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("introspection_lit.training.module.load_model", loaded)
    for options in (["--evidence.probe_trials", "8"], ["--evidence.sets", "[hedlout]"]):
        with pytest.raises(SystemExit):
            launch(tmp_path, tiny, "test", *options)
        assert "evidence" in capsys.readouterr().err


@pytest.mark.slow
def test_threshold_keeps_to_the_false_alarms_allowed(tiny: Path, tmp_path: Path) -> None:
    """``model.max_fpr``: the threshold that validation sets, and the FPR that it then reports over distinct inputs."""
    options = ["--trainer.max_epochs", "1", "--data.validation_trials", "40", "--trainer.limit_train_batches", "1"]
    free, strict = (launch(tmp_path, tiny, "fit", *options, "--model.max_fpr", share).model for share in ("1.0", "0.1"))
    assert strict.summaries["validation"]["fpr"] <= 0.1
    assert strict.threshold > free.threshold  # how many the free one lets through depends on rounding: 20 clean trials
    assert strict.threshold == strict.summaries["validation"]["threshold"]
    assert strict.metrics_of("train").max_fpr == strict.metrics_of("heldout").max_fpr == 1.0


def test_lens_of_trials_of_one_class() -> None:
    """A batch may hold clean trials only."""
    read = {number: (np.full(3, number, np.float32), False) for number in range(4)}
    assert summarise_lens(read) is None
    found = summarise_lens(read | {9: (np.ones(3, np.float32), True)})
    assert found is not None
    assert (found["clean"]["mean"], found["steered"]["mean"], found["n"]) == ([1.5] * 3, [1.0] * 3, 5)
    json.dumps(found, allow_nan=False)
