"""Controls: adapters that cannot learn anything, overlays of the configuration, and verdicts that flip at their limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from project_paths import CONFIG, ROOT
from run_scripts import script
from seeds_in_process import in_process

from introspection_lit.cli import attach, main
from introspection_lit.evaluation.controls import CONTROLS, TRAINED_SIGN, control_row, control_rows
from introspection_lit.evaluation.trial_table import TrialTable
from introspection_lit.training.changed_caches import change_problems
from introspection_lit.training.datamodule import IntrospectionDataModule
from introspection_lit.training.options import DataOptions
from introspection_lit.trials.test_sets import TEST_SETS

OVERLAYS = sorted(path for path in (ROOT / "configs" / "controls").glob("*.yaml") if not path.stem.startswith("deployed"))
# As deployed: changed caches, and the base model in other precisions (docs/deployment.md).
DEPLOYED = sorted(path for path in (ROOT / "configs" / "controls").glob("deployed*.yaml"))


def test_every_control_has_an_overlay() -> None:
    """By its name."""
    assert {path.stem.replace("-", " ") for path in OVERLAYS} == set(CONTROLS)


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.yaml of a run of the quickstart whose folder was named."""
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config["trainer"]["logger"]["init_args"] |= {"name": "", "version": "seed-0"}
    file = tmp_path_factory.mktemp("run") / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Settings by their full name; test sets stay together."""
    if not isinstance(settings, dict) or name.endswith("test_trials"):
        return {name: settings}
    return {k: v for key, inner in settings.items() for k, v in flat(inner, f"{name}.{key}".strip(".")).items()}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_changes_its_control_and_the_folder_only(
    overlay: Path, run_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On top of a run: test sets are replaced, not merged, and the results land outside the run's own folder."""
    header = overlay.read_text()
    for line in ("Purpose:", "Command:", "Expected:"):
        assert f"# {line}" in header
    assert f"configs/controls/{overlay.name}" in header
    parsed = []
    for more in ([], ["--config", str(overlay)]):
        with pytest.raises(SystemExit) as stop:
            main(["test" if overlay.stem in TEST_SETS else "fit", "--config", str(run_config), *more, "--print_config"])
        assert stop.value.code == 0
        parsed.append(flat(yaml.safe_load(capsys.readouterr().out)))
    before, after = parsed
    changed = {name: value for name, value in after.items() if value != before[name]}
    logger = "trainer.logger.init_args"
    expected: dict[str, Any] = {f"{logger}.name": overlay.stem, f"{logger}.version": None}
    if overlay.stem in TEST_SETS:
        expected |= {"data.test_trials": {overlay.stem: 256}, "evidence.texts": 0}
    else:
        expected |= {"data.control": overlay.stem.replace("-", "_")}
    assert changed == expected
    assert set(before) == set(after)


@pytest.mark.parametrize("overlay", DEPLOYED, ids=lambda path: path.stem)
def test_overlay_as_deployed_changes_test_sets_and_the_base_model_only(
    overlay: Path, run_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On top of a run, with sets of a size that the options allow; the header gives the same lines."""
    header = overlay.read_text()
    for line in ("Purpose:", "Command:", "Expected:"):
        assert f"# {line}" in header
    assert f"configs/controls/{overlay.name}" in header
    parsed = []
    for more in ([], ["--config", str(overlay)]):
        with pytest.raises(SystemExit) as stop:
            main(["test", "--config", str(run_config), *more, "--print_config"])
        assert stop.value.code == 0
        parsed.append(flat(yaml.safe_load(capsys.readouterr().out)))
    before, after = parsed
    changed = {name: value for name, value in after.items() if value != before[name]}
    logger, sets = "trainer.logger.init_args", changed.pop("data.test_trials")
    assert changed.pop("evidence.texts") == 0
    assert (changed.pop(f"{logger}.name"), changed.pop(f"{logger}.version")) == (overlay.stem, None)
    base = {
        "bf16": {"dtype": "bfloat16"}, "int8": {"quantization": "int8"},
        "nf4": {"quantization": "nf4", "quant_storage": "uint8"},
    }.get(overlay.stem.removeprefix("deployed").strip("-"), {})  # fmt: skip
    assert changed == {f"model.base.{name}": value for name, value in base.items()}
    assert set(sets) == ({"heldout", "newkinds"} if base else {"deployed", "deployed_newkinds"})
    assert change_problems(DataOptions(test_trials=sets)) == []


# ---- what is trained on ----


@pytest.fixture(scope="module")
def data(
    tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, IntrospectionDataModule]:
    """A data module for each control, set up on the tiny model."""
    made = {}
    folder = tmp_path_factory.mktemp("data")
    for control in ("none", "random_labels", "no_steering"):
        arguments = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--data.control", control]
        logger = [f"--trainer.logger.init_args.save_dir={folder}", f"--trainer.logger.init_args.name={control}"]
        cli = attach([*arguments, *logger, *some_contexts, "--data.batch_size", "8"])
        cli.datamodule.setup("fit")
        made[control] = cli.datamodule
    return made


def drawn(module: IntrospectionDataModule, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the first n trials of a split, and whether they were steered."""
    part = module.splits[split]
    trials = [part.plan.trial(number) for number in range(n)]
    assert module.bank is not None
    labels = part.collate(trials, module.bank).labels.numpy()
    return labels, np.array([trial.steered for trial in trials])


def test_random_labels_know_nothing_of_the_steering(data: dict[str, IntrospectionDataModule]) -> None:
    """Half and half among steered and among clean trials, and among the second ones of pairs whose first has a label."""
    labels, steered = drawn(data["random_labels"], "train", 2000)
    for chosen in (steered, ~steered):
        assert abs(labels[chosen].mean() - 0.5) < 4 * 0.5 / np.sqrt(chosen.sum())
    assert abs(np.corrcoef(labels, steered)[0, 1]) < 4 / np.sqrt(len(labels))
    pairs = labels.reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 4 / np.sqrt(len(pairs))
    assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 4 / np.sqrt(len(labels))


def test_random_labels_are_the_same_each_time(data: dict[str, IntrospectionDataModule]) -> None:
    """In whatever batch a trial comes; and nothing but the labels of the training is random."""
    module = data["random_labels"]
    batches = [list(module._loader("train", 8)) for _ in range(2)]
    assert [batch.labels.tolist() for batch in batches[0]] == [batch.labels.tolist() for batch in batches[1]]
    labels, _ = drawn(module, "train", 64)
    for batch in batches[0]:
        assert batch.labels.tolist() == [labels[trial.number] for trial in batch.trials]
    for split in ("validation", "seen", "heldout", "concept", "newkinds"):
        true, steered = drawn(module, split, 16)
        assert true.tolist() == steered.tolist()
    for number in range(16):
        assert module.splits["train"].plan.trial(number) == data["none"].splits["train"].plan.trial(number)


def test_without_steering_what_is_called_steered_is_clean(data: dict[str, IntrospectionDataModule]) -> None:
    """Caches of both rows of a pair are equal bit by bit in training, and only there; labels stay what they are called."""

    def differing(control: str, split: str) -> list[bool]:
        module = data[control]
        part = module.splits[split]
        assert module.bank is not None
        batch = part.collate([part.plan.trial(number) for number in range(8)], module.bank)
        assert batch.labels.tolist() == [False, True] * 4
        batch = module.on_after_batch_transfer(batch, 0)
        assert batch.cache is not None
        tensors = [tensor for layer in batch.cache.layers for tensor in (layer.keys, layer.values)]
        return [any(not torch.equal(t[row], t[row + 1]) for t in tensors) for row in range(0, 8, 2)]

    assert differing("no_steering", "train") == [False] * 4
    assert differing("no_steering", "validation") == [True] * 4
    assert differing("none", "train") == [True] * 4


# ---- the script ----


@pytest.fixture(scope="module")
def controlled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A run, and its two controls."""
    root = tmp_path_factory.mktemp("controlled")
    run = root / "default" / "version_0"
    with pytest.MonkeyPatch.context() as patch:
        logger = f"--trainer.logger.init_args.save_dir={root}"
        sets = ["--data.test_trials", '{"heldout": 12, "concept": 8}', "--evidence.enabled", "false"]
        arguments = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--test_after_fit", "true", logger, *sets]
        main(["fit", *arguments, "--seed_everything", "5", "--data.seed", "5"])
        started = in_process(patch)
        script("controls").main(["--run", str(run), "--epochs", "1"])
        yield SimpleNamespace(run=run, started=started)


@pytest.mark.slow
def test_controls_differ_from_the_run_in_the_control_only(controlled: SimpleNamespace) -> None:
    """Seed, vectors, model and sizes are the run's; the number of epochs is what was asked for."""
    theirs = flat(yaml.safe_load((controlled.run / "config.yaml").read_text()))
    bank = json.loads((controlled.run / "results.json").read_text())["bank"]
    for name in ("random-labels", "no-steering"):
        folder = controlled.run / "controls" / name
        ours = flat(yaml.safe_load((folder / "config.yaml").read_text()))
        differing = {key for key in theirs if ours[key] != theirs[key] and not key.startswith("trainer.logger")}
        assert differing == {"data.control", "data.test_trials", "data.bank", "trainer.max_epochs"}
        assert ours["data.control"] == name.replace("-", "_")
        assert ours["data.test_trials"] == {"heldout": 12}
        assert json.loads((folder / "results.json").read_text())["bank"] == bank
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["IntrospectionDataModule"]
        own = torch.load(controlled.run / "checkpoints" / "last.ckpt", weights_only=True)["IntrospectionDataModule"]
        assert state == own | {"control": name.replace("-", "_")}


@pytest.mark.slow
def test_rows_are_those_of_the_controls(controlled: SimpleNamespace) -> None:
    """Held-out numbers of each adapter, judged; the report is there."""
    found = json.loads((controlled.run / "controls.json").read_text())
    assert [made["name"] for made in found["rows"]] == ["random labels", "no steering"]
    assert {"commit", "command"} <= set(found)
    for made in found["rows"]:
        heldout = json.loads((Path(made["run"]) / "results.json").read_text())["sets"]["heldout"]
        assert {key: made[key] for key in ("auroc", "tpr", "fpr")} == {key: heldout[key] for key in ("auroc", "tpr", "fpr")}
        assert made["held"] == (0.35 <= heldout["auroc"] <= 0.65)
        assert made["recalibrated"] is None
    assert (controlled.run / "report.html").is_file()


@pytest.mark.slow
def test_second_call_trains_nothing_and_other_options_are_refused(
    controlled: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results stay what the command says that they are."""
    assert len(controlled.started) == 2
    script("controls").main(["--run", str(controlled.run), "--epochs", "1"])
    assert len(controlled.started) == 2
    with pytest.raises(SystemExit) as stop:
        script("controls").main(["--run", str(controlled.run), "--epochs", "2"])
    assert stop.value.code == 2
    assert "made by another command" in capsys.readouterr().err
    assert len(controlled.started) == 2


@pytest.mark.parametrize(
    ("missing", "more", "message"),
    [
        ("config.yaml", [], "no config.yaml in it"),
        ("results.json", [], "results.json: cannot be read"),
        ("", ["--data.seed", "1"], "--data.seed: is decided by the script"),
        ("test", [], "is not that of a fit"),
        ("control", [], "is a control itself (no_steering)"),
    ],
)
def test_runs_that_cannot_be_controlled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, more: list[str], message: str
) -> None:
    """One problem, status 2, and nothing is trained."""
    config: dict[str, Any] = {
        "test_after_fit": True,
        "data": {"control": "no_steering" if missing == "control" else "none"},
    }
    if missing == "test":
        del config["test_after_fit"]
    files = {"config.yaml": yaml.safe_dump(config), "results.json": '{"sets": {}}'}
    for name in set(files) - {missing}:
        (tmp_path / name).write_text(files[name])
    with pytest.raises(SystemExit) as stop:
        script("controls").main(["--run", str(tmp_path), *more])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "1 problem" in shown
    assert {path.name for path in tmp_path.iterdir()} == set(files) - {missing}


# ---- verdicts ----


def table(name: str, scores: np.ndarray, steered: np.ndarray, roles: list[str]) -> TrialTable:
    """Trials of one set, a context for each pair."""
    rows = [
        {
            "split": name,
            "number": number,
            "kind": "chat",
            "context_key": str(number // 2),
            "question_text": roles[number],
            "vectors": "heldout",
            "vector_name": "x",
            "band": [0, 1],
            "strength": 1.0,
            "steered": bool(steered[number]),
            "role": roles[number],
            "scores": {"adapter": float(scores[number])},
        }
        for number in range(len(scores))
    ]
    return TrialTable.from_rows(rows, ["chat"])


LIMITS = [(name, end) for name, control in CONTROLS.items() for end in (control.lowest, control.highest)]


@pytest.mark.parametrize(("name", "limit"), [(name, limit) for name, limit in LIMITS if 0 < limit < 1])
def test_verdict_flips_at_the_limit(name: str, limit: float) -> None:
    """At the limit a control still holds, a little beyond it no more."""
    control = CONTROLS[name]
    numbers = {"auroc": 0.5, "tpr": 0.5, "fpr": 0.5}
    outside = limit - 1e-6 if limit == control.lowest else limit + 1e-6
    assert control_row(name, numbers | {control.key: limit}, None)["held"] is True
    assert control_row(name, numbers | {control.key: outside}, None)["held"] is False
    assert control_row(name, numbers | {control.key: float("nan")}, None)["held"] is False


@pytest.mark.parametrize("name", [name for name in CONTROLS if name in TEST_SETS and name != "factual"])
def test_sets_are_judged_by_their_summaries(name: str) -> None:
    """Which number decides, and where; a set that was not run has no row."""
    steered = np.arange(40) % 2 == 1
    trials = table(name, np.where(steered, 5.0, 3.0), steered, ["detection"] * 40)
    control = CONTROLS[name]
    fine = {"auroc": min(1.0, (control.lowest + control.highest) / 2), "tpr": 1.0, "fpr": 0.0}
    (found,) = control_rows({name: fine, "heldout": fine}, trials)
    assert found == {
        "name": name,
        "what": control.what,
        "expected": control.expected,
        **fine,
        "recalibrated": 1.0,  # the stored threshold may be anywhere: this one is set anew
        "held": True,
        "run": None,
    }
    (of_both_signs,) = control_rows({name: fine}, trials, both_signs=True)
    assert of_both_signs == found | ({"what": TRAINED_SIGN} if name == "flipped" else {})
    (found,) = control_rows({name: {"auroc": 0.9, "tpr": 1.0, "fpr": 0.1}}, trials)
    assert found["held"] is False
    assert control_rows({"heldout": fine}, trials) == []


@pytest.mark.parametrize(("push", "held"), [(0.0, True), (40.0, False), (-40.0, False)])
def test_factual_is_judged_within_each_role(push: float, held: bool) -> None:
    """Questions with other answers have other scores: only a push in one direction counts, not where they start."""
    random = np.random.default_rng(0)
    steered = np.arange(400) % 2 == 1
    roles = ["clear yes", "clear yes", "clear no", "clear no"] * 100
    level = np.where([role == "clear yes" for role in roles], 100.0, -100.0)
    trials = table("factual", level + random.standard_normal(400) + push * steered, steered, roles)
    (found,) = control_rows({"factual": {"auroc": 0.5, "tpr": 0.5, "fpr": 0.5}}, trials)
    assert found["held"] is held
    assert found["auroc"] == pytest.approx(0.5 if not push else float(push > 0), abs=0.1)


def test_factual_questions_that_were_asked_of_one_class_alone_are_left_out() -> None:
    """As in tests of a few trials, each on a context of its own: their AUROC is NaN, which results files cannot hold."""
    steered = np.array([False, True, False, True, False])
    roles = ["clear yes", "clear yes", "clear no", "unsure", "unsure"]
    summary = {"factual": {"auroc": 0.5, "tpr": 0.5, "fpr": 0.5}}
    (found,) = control_rows(summary, table("factual", np.array([1.0, 2.0, 3.0, 4.0, 5.0]), steered, roles))
    assert found["auroc"] == pytest.approx((1 + 0) / 2)
    assert control_rows(summary, table("factual", np.array([1.0, 2.0]), steered[:2], ["clear yes", "clear no"])) == []
