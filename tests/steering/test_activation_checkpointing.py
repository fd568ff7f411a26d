"""Activation checkpointing of the question pass: the same gradients from less memory, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import CONFIG
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from transformers import Cache, PreTrainedModel
from two_processes import run_together

from introspection_lit.cli import main
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.base_model import Lora
from introspection_lit.models.loading import add_lora
from introspection_lit.steering.activation_checkpointing import recompute_layers
from introspection_lit.steering.caches import fork
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, position_ids, steered_cache
from introspection_lit.training.module import IntrospectionModule
from introspection_lit.trials.batch import TrialBatch

CONTEXTS = [list(range(10, 22)), list(range(40, 45)), list(range(60, 68))]
QUESTIONS = [list(range(100, 124)), list(range(110, 115)), list(range(120, 140))]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ANSWERS = torch.tensor([7, 3, 7])


def asked(model: PreTrainedModel, lora: Lora, shared: bool = False) -> tuple[IntrospectionModule, Any]:
    """A module with a trained adapter in training mode, and a batch with a steered cache; one cache for all if shared."""
    torch.manual_seed(1)
    module = IntrospectionModule(lora=lora)
    module.layers, module.model = find_decoder_layers(model), add_lora(model, lora).train()
    for name, parameter in module.model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    ids, mask = pad(CONTEXTS[:1] if shared else CONTEXTS, 0, "left")
    direction = nn.functional.normalize(torch.randn(len(ids), 1, model.config.hidden_size), dim=-1)
    scale = torch.zeros(len(ids), len(module.layers))
    scale[0, 1] = 3.0
    question_ids, question_mask = pad(QUESTIONS, 0, "right")
    batch = SimpleNamespace(
        context_mask=mask,
        question_ids=question_ids,
        question_mask=question_mask,
        cache_of=torch.zeros(3, dtype=torch.long) if shared else None,
        question_prefix_ids=torch.tensor([90, 91, 92]) if shared else None,
        cache=steered_cache(
            module.model, module.model, module.layers, ids, mask, Intervention(direction, scale, mask.bool())
        ),
    )
    return module, batch


def gradients(module: IntrospectionModule, batch: Any, recompute: bool) -> dict[str, Tensor]:
    """Gradients of a loss that is like training's; the layers are as they were before backward begins."""
    module.zero_grad()
    module.recompute = recompute
    torch.manual_seed(3)  # of dropout
    loss = cross_entropy(module.answer_logits(batch).float(), ANSWERS)
    assert not any("forward" in vars(layer) for layer in module.layers)
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def state(cache: Cache | None) -> list[Tensor]:
    """Copies of the keys and values of a cache."""
    assert cache is not None
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_the_same_to_the_bit(family_model: PreTrainedModel, attention: str, dropout: float) -> None:
    """Every LoRA weight of every layer, with the same dropout in both runs; and the batch's cache stays as it was."""
    family_model.set_attn_implementation(attention)
    module, batch = asked(family_model, Lora(dropout=dropout, target_modules=ALL_LINEAR))
    before = state(batch.cache)
    plain = gradients(module, batch, recompute=False)
    again = gradients(module, batch, recompute=True)
    assert len(plain) == 1 + 2 * len(ALL_LINEAR) * len(module.layers)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(again[name], gradient), name
    assert all(torch.equal(new, old) for new, old in zip(state(batch.cache), before, strict=True))


def test_gradients_under_autocast(family_model: PreTrainedModel) -> None:
    """The second run has the precision of the first, though backward runs outside of autocast."""
    module, batch = asked(family_model, Lora(dropout=0.5))
    found = []
    for recompute in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            module.zero_grad()
            module.recompute = recompute
            torch.manual_seed(3)
            loss = cross_entropy(module.answer_logits(batch).float(), ANSWERS)
        loss.backward()
        found.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) == 2 * 4 * len(module.layers)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_of_some_layers_alone(family_model: PreTrainedModel) -> None:
    """Below the first layer with an adapter there is nothing to run again."""
    module, batch = asked(family_model, Lora(dropout=0.0, layers=[3, 5]))
    plain, again = (gradients(module, batch, recompute) for recompute in (False, True))
    assert len(plain) == 1 + 2 * 4 * 2
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("grad", [False, True])
def test_a_lead_and_shared_caches(family_model: PreTrainedModel, grad: bool) -> None:
    """The lead is read once and its keys are there for the question; with gradient, it comes through them too."""
    module, batch = asked(family_model, Lora(dropout=0.0), shared=True)
    if grad:
        plain, again = (gradients(module, batch, recompute) for recompute in (False, True))
        assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())
        return
    with torch.no_grad():
        plain_logits = module.answer_logits(batch)
        module.recompute = True
        assert torch.equal(module.answer_logits(batch), plain_logits)


def test_without_gradient_nothing_is_checkpointed(family_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation, test and the prefill run the layers' own forward."""
    module, batch = asked(family_model, Lora())
    module.recompute = True
    monkeypatch.setattr("introspection_lit.steering.question_pass.recompute_layers", lambda _: pytest.fail("checkpointed"))
    with torch.no_grad():
        module.answer_logits(batch)


def saved_bytes(module: IntrospectionModule, batch: TrialBatch, recompute: bool) -> int:
    """Bytes of distinct storages that the graph of a question pass keeps, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    module.recompute = recompute
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module.answer_logits(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_less_is_kept(family_model: PreTrainedModel) -> None:
    """Less than a third of what a plain pass keeps, though these models have six layers only."""
    module, batch = asked(family_model, Lora())
    plain, again = (saved_bytes(module, batch, recompute) for recompute in (False, True))
    inputs = len(module.layers) * 3 * len(QUESTIONS[0]) * module.layers[0].hidden_size * 4
    assert inputs <= again < plain / 3


def test_layers_get_their_forward_back(family_model: PreTrainedModel) -> None:
    """After an exception in the block, in a layer, and in setting up; also one that had been put on a layer itself."""
    layers = find_decoder_layers(family_model)

    def own(*args: Any, **kwargs: Any) -> Any:
        return type(layers[2]).forward(layers[2], *args, **kwargs)

    layers[2].forward = own
    with pytest.raises(RuntimeError, match="boom"), recompute_layers(layers):
        assert all("forward" in vars(layer) for layer in layers)
        raise RuntimeError("boom")
    with pytest.raises(AttributeError), recompute_layers([*layers, SimpleNamespace()]):  # type: ignore[list-item]
        pass
    assert ["forward" in vars(layer) for layer in layers] == [False, False, True, False, False, False]
    assert layers[2].forward is own


def test_backward_reads_the_cache_as_it_was(family_model: PreTrainedModel) -> None:
    """The cache that is given is not appended to, and what happens to it before backward does not reach the second run."""
    module, batch = asked(family_model, Lora(dropout=0.0))
    plain = gradients(module, batch, recompute=False)
    module.zero_grad()
    cache = fork(batch.cache)
    with recompute_layers(module.layers):
        whole = torch.cat([batch.context_mask, batch.question_mask], dim=1)
        logits = module(
            input_ids=batch.question_ids,
            attention_mask=whole,
            position_ids=position_ids(whole)[:, batch.context_mask.shape[1] :],
            past_key_values=cache,
        ).logits[torch.arange(3), batch.question_mask.sum(dim=1) - 1]
    assert all(torch.equal(new, old) for new, old in zip(state(cache), state(batch.cache), strict=True))
    for layer in cache.layers:
        layer.keys, layer.values = torch.zeros_like(layer.keys), torch.zeros_like(layer.values)
    cross_entropy(logits.float(), ANSWERS).backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-6, rtol=1e-4)  # logits of all positions


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fit_gives_the_same_adapter(
    tiny: Path, some_contexts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The whole training through the command line, bit by bit; what was begun without goes on with it."""
    monkeypatch.chdir(tmp_path)
    calls: list[int] = []

    def counted(layers: list[nn.Module]) -> Any:
        calls.append(len(layers))
        return recompute_layers(layers)

    monkeypatch.setattr("introspection_lit.steering.question_pass.recompute_layers", counted)
    options = ["--model.base.name_or_path", str(tiny), "--trainer.precision", precision, "--checkpoint.save_top_k", "-1"]
    options += some_contexts
    runs = [main(["fit", "--config", CONFIG, *options])]
    assert not calls
    checkpoints = runs[0].trainer.checkpoint_callback
    first_epoch = str(Path(checkpoints.dirpath) / "best-step3.ckpt")
    options += ["--model.recompute", "true"]
    runs.append(main(["fit", "--config", CONFIG, *options]))
    assert calls == [6] * 6  # layers, steps
    runs.append(main(["fit", "--config", CONFIG, *options, "--ckpt_path", first_epoch]))
    plain, *others = (torch.load(r.trainer.checkpoint_callback.last_model_path, weights_only=True) for r in runs)
    for other in others:
        assert other["introspection"] == plain["introspection"]
        for name, tensor in plain["state_dict"].items():
            assert torch.equal(other["state_dict"][name], tensor), name


@pytest.mark.slow
def test_fsdp_gives_the_same_adapter(tiny_folder: Callable[[str], Path], some_contexts: list[str], tmp_path: Path) -> None:
    """Two processes; decoder layers and LoRA's matrices are units of their own, and a layer's last matrix has one too."""
    options = ["--trainer.strategy", "introspection_fsdp", "--trainer.devices", "2", "--trainer.precision", "bf16-mixed"]
    options += [*some_contexts, "--model.base.name_or_path", str(tiny_folder("qwen2-wide")), "--model.lora.dropout", "0.2"]
    options += ["--model.base.quantization", "nf4", "--model.base.dtype", "bfloat16"]
    options += ["--model.lora.target_modules", "[q_proj, v_proj, down_proj]"]
    run_together(tmp_path, [["fit", "--config", CONFIG, *options, "--model.recompute", how] for how in ("false", "true")])
    runs = [tmp_path / f"lightning_logs/default/version_{number}" for number in range(2)]
    adapters = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs]
    assert len(adapters[0]) == 2 * 3 * 6
    for name, tensor in adapters[0].items():
        assert torch.equal(adapters[1][name], tensor), name
