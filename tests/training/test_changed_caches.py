"""Changed caches in a run: training with benign ones, the test sets that run through all, and options that cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from transformers import PreTrainedModel

from introspection_lit.cli import attach, main
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import add_lora, load_model
from introspection_lit.models.lora_targets import USUAL
from introspection_lit.models.random_models import random_config
from introspection_lit.steering.change_names import CHANGES, DROPS
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.training.cache_reuse import Prefills
from introspection_lit.training.changed_caches import change_problems_of_model, checked_frequencies
from introspection_lit.training.experiment_setup import prepare
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.training.options import DataOptions, Reuse
from introspection_lit.training.run_context import RunContext
from introspection_lit.utils.errors import RunError

N = len(CHANGES) + 1
ROUNDED = ("fp8", "bf16", "int8", "int4", "int2")  # a difference of rounding can move a number by a step
BENIGN = ["--data.benign", "[evicted, shifted, low_key_norm, system_prompt]", "--data.benign_share", "0.5"]
SETS = ["--data.test_trials", f"{{heldout: 8, deployed: {4 * N}, deployed_newkinds: {2 * N}}}"]
EVIDENCE = ["--evidence.enabled", "true", "--evidence.sets", "[deployed]"]
EVIDENCE += [f"--evidence.{name}=0" for name in ("lens_trials", "texts", "facts", "probe_trials")]


@pytest.fixture(scope="module")
def run(tiny: Path, some_contexts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """Runs a subcommand on the tiny model; trained with benign changes, if it trains."""
    root = tmp_path_factory.mktemp("changed")

    def command(subcommand: str, name: str, *options: str) -> SimpleNamespace:
        saved = ["--trainer.logger.init_args.save_dir", str(root), "--trainer.logger.init_args.name", name]
        words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), *some_contexts, *saved, *SETS, *EVIDENCE]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["pytest"])
            cli = main([subcommand, *words, *options])
        return SimpleNamespace(cli=cli, folder=Path(cli.trainer.log_dir))

    return command


@pytest.fixture(scope="module")
def trained(run: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """A run of two epochs with benign changes, and its test."""
    return run("fit", "benign", *BENIGN, "--test_after_fit", "true", "--checkpoint.save_top_k", "-1")


def rows_of(folder: Path, file: str) -> list[dict[str, Any]]:
    """The lines of a JSON Lines file."""
    return [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]


def test_results_have_a_row_for_each_set_and_change(trained: SimpleNamespace) -> None:
    """Whose rates are those of the trials; the page shows them."""
    results = json.loads((trained.folder / "results.json").read_text(encoding="utf-8"))
    trials = [row for row in rows_of(trained.folder, "trials.jsonl") if row["split"].startswith("deployed")]
    rows = {(row["set"], row["change"]): row for row in results["evidence"]["deployed"]}
    names = ["untouched", *CHANGES]
    assert list(rows) == [(split, change) for split in ("deployed", "deployed_newkinds") for change in names]
    for (split, change), row in rows.items():
        mine = [t for t in trials if t["split"] == split and t.get("change", "untouched") == change]
        above = {label: [t["scores"]["adapter"] > results["threshold"] for t in mine if t["steered"] == label]
                 for label in (False, True)}  # fmt: skip
        assert row["n_clean"] == row["n_steered"] == (2 if split == "deployed" else 1)
        assert row["fpr"] == np.mean(above[False])
        assert row["alarms"] == sum(above[False])
        assert row["tpr"] == np.mean(above[True])
        assert all(t["strength"] == 0.5 for t in mine if t["steered"])
    assert results["sets"]["deployed"]["n_clean_distinct"] == 2 * N
    assert all("untrained" in t["scores"] for t in trials if t["split"] == "deployed")
    page = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert "As deployed" in page
    assert "Changed caches: deployed_newkinds" in page


def test_changes_reach_the_score(trained: SimpleNamespace) -> None:
    """Every one moves it from that of the untouched cache, but for other padding, which must not."""
    rows = rows_of(trained.folder, "trials.jsonl")
    scores = {(t["number"] // (2 * N), t["steered"], t.get("change", "")): t["scores"]["adapter"]
              for t in rows if t["split"] == "deployed"}  # fmt: skip
    for change in CHANGES:
        caches = [(turn, steered) for turn in (0, 1) for steered in (False, True)]
        moved = max(abs(scores[*cache, change] - scores[*cache, ""]) for cache in caches)
        assert (moved < 1e-4) == (change == "neighbours"), (change, moved)


def test_each_row_equals_the_row_alone(trained: SimpleNamespace, run: Callable[..., SimpleNamespace]) -> None:
    """Scored in batches of one, without the other rows of its batch."""
    checkpoint, bank = (str(trained.folder / file) for file in ("checkpoints/last.ckpt", "vectors.safetensors"))
    common = ["--ckpt_path", checkpoint, "--data.bank", bank, *BENIGN]
    together = rows_of(run("predict", "together", *common).folder, "predictions.jsonl")
    wanted = {t["number"]: t for t in together if t["split"] == "deployed" and t["number"] < 2 * N}
    names = ", ".join(f"deployed:{number}" for number in sorted(wanted))
    alone = rows_of(run("predict", "alone", *common, "--data.replay", f"[{names}]").folder, "predictions.jsonl")
    assert len(alone) == 2 * N
    for row in alone:
        if row.get("change") not in ROUNDED:
            assert row["log_odds"] == pytest.approx(wanted[row["number"]]["log_odds"], abs=1e-4), row.get("change")


def test_kept_and_shared_caches_stay_whole(run: Callable[..., SimpleNamespace], few_contexts: str) -> None:
    """Training with benign changes learns the same whatever is kept and shared: a changed kept cache would show."""
    few = ["--data.contexts", few_contexts, "--data.validation_kinds", "[csv]", "--data.test_kinds", "[]",
           "--data.test_trials", "{heldout: 8}", "--data.trials_per_epoch", "96", "--trainer.max_epochs", "1"]  # fmt: skip
    off = ["--data.reuse.clean", "false", "--data.reuse.layers", "false"]
    ours, plain = run("fit", "kept", *few, *BENIGN), run("fit", "plain", *few, *BENIGN, *off)
    assert ours.cli.datamodule.prefill.contexts_kept > 0
    assert plain.cli.datamodule.prefill.contexts_kept == 0
    ends = [
        torch.load(made.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for made in (ours, plain)
    ]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], atol=2e-4, rtol=0)


def test_a_run_goes_on_with_the_same_changes_only(trained: SimpleNamespace, run: Callable[..., SimpleNamespace]) -> None:
    """To the same bits; other changes are other training data."""
    bank = ["--data.bank", str(trained.folder / "vectors.safetensors")]
    first = ["--ckpt_path", str(trained.folder / "checkpoints" / "best-step3.ckpt"), *bank]
    resumed = run("fit", "resumed", *BENIGN, *first)
    ends = [torch.load(made.folder / "checkpoints" / "last.ckpt", weights_only=True) for made in (trained, resumed)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 6
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name]), name
    with pytest.raises(SystemExit):
        run("fit", "other", "--data.benign", "[int8]", *first)


TASKS = "{detection: {questions: 2}, factual: {}, reading: {}, plain_text: {questions: 0.5}}"


def test_references_are_those_of_masked_attention(tiny: Path, some_contexts: list[str]) -> None:
    """Of dropped tokens the untrained model's answer without them; of all other changes its answer to the whole text."""
    sizes = ["--data.batch_size", "16", "--data.eval_batch_size", "16", "--data.test_trials", "{heldout: 16}"]
    changes = ["--data.benign", "[evicted, window, int2]", "--data.benign_share", "1"]
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--trainer.logger", "false", *some_contexts]
    split = prepare(attach([*words, "--data.tasks", TASKS, *sizes, *changes]).datamodule.run).splits["train"]
    directions = {name: random_unit_vectors(4, 32, 0, name) for name in RANDOM_SPLITS}
    names = {name: list("abcd") for name in RANDOM_SPLITS}
    bank = VectorBank(directions, names, torch.linspace(3.0, 8.0, 6), {})
    model = add_lora(load_model(BaseModel(str(tiny))), Lora()).eval()
    module = cast(
        "IntrospectionModule",
        SimpleNamespace(model=model, layers=find_decoder_layers(model), base=BaseModel(), recompute=False),
    )
    batch = split.collate(split.plan.batch(0, 64, split.lengths(), 1), bank)
    context = cast("Any", SimpleNamespace(forward_context=nullcontext))
    trainer = SimpleNamespace(model=model, world_size=1, precision_plugin=context, training=False)
    options = SimpleNamespace(reuse=Reuse(), prefill_adapter=False)
    parts = SimpleNamespace(options=options, trainer=trainer, module=module, share_layers=True, usual_targets=USUAL)
    Prefills(cast("RunContext", parts))(batch)
    assert batch.references is not None
    assert batch.references.log_probabilities is not None
    assert batch.changes is not None
    seen = set()
    rows = enumerate(zip(batch.references.cache_of.tolist(), batch.references.question_ids, strict=True))
    for row, (cache, question) in rows:
        name = batch.changes[cache].name
        tokens = batch.context_ids[cache][batch.context_mask[cache].bool()].tolist()
        length = len(tokens)
        tokens += question[batch.references.question_mask[row].bool()].tolist()
        size = len(tokens)
        allowed = torch.ones(size, size).tril().bool()
        if name in DROPS:
            first, end = (4, 4 + (length - 4) // 2) if name == "evicted" else (0, length // 2)
            allowed[length:, first:end] = False
        mask = torch.zeros(1, 1, size, size).masked_fill(~allowed, torch.finfo(torch.float32).min)
        with torch.no_grad(), model.disable_adapter():
            places = torch.arange(size)[None]
            logits = model(input_ids=torch.tensor([tokens]), attention_mask=mask, position_ids=places).logits[0, -1]
        torch.testing.assert_close(
            batch.references.log_probabilities[row], logits.log_softmax(dim=-1), atol=1e-3, rtol=1e-3
        )
        seen.add(name)
    assert seen == {"evicted", "window", ""}


def test_rotation_is_checked_against_the_models_own(family_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that turns other channels together is refused, not shifted wrongly."""
    model = add_lora(family_model, Lora())
    module = cast(
        "IntrospectionModule",
        SimpleNamespace(model=model, layers=find_decoder_layers(model), base=BaseModel(), recompute=False),
    )
    assert len(checked_frequencies(module)) * 2 == model.get_base_model().config.head_dim
    decoder: Any = model.get_base_model().get_decoder()
    forward = decoder.rotary_emb.forward

    def interleaved(keys: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part[..., torch.arange(part.shape[-1]) // 2] for part in forward(keys, places))

    monkeypatch.setattr(decoder.rotary_emb, "forward", interleaved)
    with pytest.raises(RunError, match="rotary positions of this model are unknown"):
        checked_frequencies(module)


def test_what_a_model_cannot_do_is_found_in_its_configuration() -> None:
    """Before it is loaded; a test that does not ask for it is no matter."""
    config = random_config("tiny")
    asked = DataOptions(test_trials={"deployed": 40}, test_changes=["shifted", "other_adapter"])
    assert change_problems_of_model(asked, config, USUAL, sharded=False) == []
    assert "FSDP" in change_problems_of_model(asked, config, USUAL, sharded=True)[0]
    assert "other_adapter puts matrices where" in change_problems_of_model(asked, config, [], sharded=False)[0]
    config.rope_parameters = {"sliding": {"rope_theta": 1e4}, "full": {"rope_theta": 1e6}}
    assert "shifted needs rotary positions" in change_problems_of_model(asked, config, USUAL, sharded=False)[0]
    assert "shifted needs" in change_problems_of_model(DataOptions(benign=["shifted"]), config, USUAL, sharded=False)[0]
    for options in (DataOptions(), DataOptions(test_trials={"deployed": 40}, test_changes=["int8"])):
        assert change_problems_of_model(options, config, USUAL, sharded=True) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.test_changes", "[int3]"], ["data.test_changes: 'int3' is no change of a cache", "int4"]),
        (["--data.benign", "[int8, bf17]"], ["data.benign: 'bf17' is no change"]),
        (["--data.benign", "[int8, noise_5]"], ["data.benign: 'noise_5' is tampering", "Expected some of: bf16"]),
        (["--data.benign", "[int8]", "--data.benign_share", "1.5"], ["data.benign_share: got 1.5", "[0, 1]"]),
        (["--data.benign", "[int8]", "--data.benign_share", "-.1"], ["data.benign_share: got -0.1"]),
        (["--data.benign", "[int8, int8]"], ["data.benign: names a change twice"]),
        (["--data.test_trials", "{deployed: 20}"], [f"data.test_trials.deployed: got 20. Expected at least {2 * N}"]),
        (["--data.benign", "[int8]", "--data.manifest", "x.jsonl"], ["data.benign: a manifest lists trials without"]),
    ],
)
def test_options_that_cannot_work(refused: Callable[..., str], options: list[str], said: list[str]) -> None:
    """Each named, with what was given and what to do, before the model is loaded."""
    printed = " ".join(refused(*options).split())
    assert all(words in printed for words in said), printed
