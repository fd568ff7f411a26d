"""The computed memory against tensors that are really there: on the CPU, in each precision and quantisation."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project_paths import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config

from introspection_lit.models import memory_estimate as memory
from introspection_lit.models.architecture import find_decoder_layers
from introspection_lit.models.autocast import cast_once
from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.decoder_shape import Shape, decoder_shape
from introspection_lit.models.loading import add_lora, load_config, load_model
from introspection_lit.models.memory_estimate import Load, estimate, largest_batch
from introspection_lit.models.random_models import random_config
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import steered_cache
from introspection_lit.tasks.scoring import answer_loss
from introspection_lit.training.module import IntrospectionModule

# Precision, and how the base model is loaded.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("32-true", {}),
    "bfloat16": ("bf16-true", {"dtype": "bfloat16"}),
    "mixed": ("bf16-mixed", {"dtype": "bfloat16"}),
    "mixed over float32": ("bf16-mixed", {}),
    "nf4": ("bf16-mixed", {"dtype": "bfloat16", "quantization": "nf4"}),
    "nf4 in float32": ("32-true", {"quantization": "nf4", "quant_storage": "uint8"}),
}
LORAS = {
    "all layers": Lora(r=4),
    "no dropout": Lora(r=4, dropout=0.0),
    "upper layers": Lora(r=4, layers=[3, 5], target_modules=["q_proj", "down_proj"]),
}


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, as long as they live, and the most there ever were."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.references: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and look at what comes out."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.references:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self.references.pop(key, None)

        self.now += size
        self.peak = max(self.peak, self.now)
        self.references[key] = weakref.ref(storage, gone)


def module_of(base: BaseModel, lora: Lora, precision: str) -> IntrospectionModule:
    """A module as training has it."""
    module = IntrospectionModule(base, lora)
    model = load_model(base)
    module.layers = find_decoder_layers(model)
    module.model = add_lora(model, lora).train()
    if precision == "bf16-true":
        module.model.to(torch.bfloat16)
    cast_once(module.model)
    return module


def casting(precision: str) -> AbstractContextManager[Any]:
    """What the trainer's precision does around a step."""
    return torch.autocast("cpu", torch.bfloat16) if precision.endswith("mixed") else nullcontext()


def prefilled(module: IntrospectionModule, load: Load) -> SimpleNamespace:
    """A batch after its prefill, with padding on the left."""
    context, question = (torch.randint(1, 50, (load.batch, length)) for length in (load.context, load.question))
    mask = torch.ones_like(context)
    mask[0, :3] = 0
    hidden, layers = module.model.config.hidden_size, len(module.layers)
    nothing = Intervention(torch.zeros(load.batch, 1, hidden), torch.zeros(load.batch, layers), mask.bool())
    cache = steered_cache(module.model, module.model, module.layers, context, mask, nothing)
    none: dict[str, Any] = {"question_prefix_ids": None, "cache_of": None}
    asked = {"question_ids": question, "question_mask": torch.ones_like(question)}
    return SimpleNamespace(cache=cache, context_mask=mask, **asked, **none)


def kept_for_backward(module: IntrospectionModule, batch: SimpleNamespace, precision: str) -> int:
    """Bytes of the distinct storages that the question pass saves, without parameters and the cache."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    ours = [*module.model.parameters(), *(t for layer in batch.cache.layers for t in (layer.keys, layer.values))]
    with casting(precision), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.answer_logits(batch)  # type: ignore[arg-type]
    for tensor in ours:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("family", "way", "lora"),
    [*(("qwen2-wide", way, lora) for way in WAYS for lora in LORAS), ("llama-wide", "mixed", "all layers")],
)
def test_activations_are_those_saved_for_the_backward(
    tiny_folder: Callable[[str], Path], family: str, way: str, lora: str
) -> None:
    """Within 5 % of what autograd holds, from a batch and lengths at which no term is small.

    With an adapter on some layers within 10 %: eager attention in the lowest one keeps less, which is not computed.
    """
    check_activations(tiny_folder(family), *WAYS[way], LORAS[lora])


def check_activations(folder: Path, precision: str, options: dict[str, Any], lora: Lora) -> None:
    """Compare what is computed with what autograd holds."""
    base = BaseModel(str(folder), **options)
    module, load = module_of(base, lora, precision), Load(6, 40, 24, precision, device="cpu")
    with casting(precision):
        batch = prefilled(module, load)
    computed = memory.activation_bytes(decoder_shape(load_config(base)), base, lora, load)
    assert computed == pytest.approx(kept_for_backward(module, batch, precision), rel=0.1 if lora.layers else 0.05)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("lengths", [(24, 36), (200, 12)])
@pytest.mark.parametrize("way", ["float32", "mixed", "nf4"])
def test_peak_of_a_step(tmp_path: Path, way: str, lengths: tuple[int, int], recompute: bool) -> None:
    """Prefill, question pass and backward: the most bytes alive at once, within 15 %; the gradients are there after it."""
    precision, options = WAYS[way]
    sizes = {"hidden_size": 128, "intermediate_size": 640, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, num_hidden_layers=6, vocab_size=200, pad_token_id=0)
    folder = saved(config, tmp_path)
    base, lora = BaseModel(str(folder), **options), Lora()
    module = module_of(base, lora, precision)
    module.recompute = recompute
    load = Load(16, *lengths, precision, recompute=recompute, device="cpu")
    live = Live(list(module.model.parameters()))
    with live:
        with casting(precision):
            batch = prefilled(module, load)
            logits = module.answer_logits(batch)  # type: ignore[arg-type]
            loss = answer_loss(logits, torch.tensor([5, 6]), torch.arange(load.batch) % 2)
        loss.backward()
    computed = estimate(decoder_shape(config), base, lora, load)
    standing = computed.weights + computed.adapter + computed.optimizer
    assert live.peak == pytest.approx(computed.device - standing, rel=0.15)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert sum(gradient.nbytes for gradient in gradients) == computed.gradients
    assert sum(t.nbytes for layer in batch.cache.layers for t in (layer.keys, layer.values)) == computed.cache


def saved(config: Qwen2Config, folder: Path) -> Path:
    """A model folder with random weights."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", [*WAYS, "tied"])
def test_weights_adapter_and_optimiser(tmp_path: Path, way: str) -> None:
    """To the byte, but for bitsandbytes' tables: a model's own parameters and scales, and AdamW's own state."""
    precision, options = WAYS.get(way, ("32-true", {}))
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, num_hidden_layers=3, vocab_size=300, pad_token_id=0, tie_word_embeddings=way == "tied")
    base, lora = BaseModel(str(saved(config, tmp_path)), **options), Lora(layers=[0, 2])
    module, shape = module_of(base, lora, precision), decoder_shape(config)
    computed = estimate(shape, base, lora, Load(2, 8, 8, precision))
    parameters = dict(module.model.named_parameters())
    held = sum(parameter.nbytes for name, parameter in parameters.items() if "lora_" not in name)
    tables = 0
    for parameter in parameters.values():
        if state := getattr(parameter, "quant_state", None):
            held += state.absmax.nbytes + state.state2.absmax.nbytes
            tables += state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes
    assert computed.weights == pytest.approx(held, rel=1e-3)
    assert tables < 2048 * len(shape.matrices)
    assert shape.weights == sum(p.numel() for p in load_model(replace(base, quantization="none")).parameters())
    adapter = [parameter for parameter in parameters.values() if parameter.requires_grad]
    assert sum(parameter.nbytes for parameter in adapter) == computed.adapter
    optimizer = torch.optim.AdamW(adapter)
    for parameter in adapter:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for name, value in each.items() if name != "step"]
    assert sum(tensor.nbytes for tensor in state) == computed.optimizer


@pytest.fixture(scope="module")
def large() -> Shape:
    """Qwen2.5-Coder-32B's shape."""
    return decoder_shape(random_config("qwen2.5-coder-32b"))


NF4 = BaseModel("x", dtype="bfloat16", quantization="nf4")


def test_strategies(large: Shape) -> None:
    """DDP holds everything and its buckets; FSDP's shares add up, and none is less than scales and whole units."""
    load = Load(8, 128, 40)
    one, ddp = estimate(large, NF4, Lora(), load), estimate(large, NF4, Lora(), replace(load, strategy="ddp", world_size=4))
    assert ddp == replace(one, gradients=2 * one.gradients)
    shares = [estimate(large, NF4, Lora(), replace(load, strategy="fsdp", world_size=n)) for n in (2, 4, 8)]
    scales = 65 * sum(matrix.weights for matrix in large.matrices) // 4096  # 1 / 64 + 4 / 16384 are 65 / 4096 (and a bit)
    for n, share in zip((2, 4, 8), shares, strict=True):
        assert n * (share.weights - scales) == pytest.approx(one.weights - scales, rel=2e-3)
        assert n * share.optimizer == pytest.approx(one.optimizer)
        assert share.activations == one.activations
        assert share.gathered > 2 * 152064 * 5120 * 2  # embeddings and head in bfloat16
    assert one.device > shares[0].device > shares[1].device > shares[2].device


def test_largest_batch(large: Shape) -> None:
    """It fits and the next one does not; recomputing layers makes room; nothing fits into nothing."""
    load, free = Load(0, 128, 40), 72e9
    best = largest_batch(large, NF4, Lora(), load, free)
    assert best % 2 == 0
    assert estimate(large, NF4, Lora(), replace(load, batch=best)).device <= free
    assert estimate(large, NF4, Lora(), replace(load, batch=best + 2)).device > free
    assert largest_batch(large, NF4, Lora(), replace(load, recompute=True), free) > 2 * best
    assert largest_batch(large, NF4, Lora(), load, 1e9) == 0


def test_kept_caches_are_in_host_memory(large: Shape) -> None:
    """100 contexts of 72 tokens are 18 MiB each, by hand; on the device only what a batch borrows."""
    load = Load(8, 72, 36)
    none, kept = (estimate(large, NF4, Lora(), replace(load, kept_contexts=n)) for n in (0, 100))
    assert kept.host == 100 * 2 * 64 * 1024 * 72 * 2 == 100 * 18 * 2**20
    assert kept.prefill - none.prefill == none.cache
    assert none.host == 0


def test_several_questions_share_caches_and_add_references_and_texts(large: Shape) -> None:
    """64 questions of 16 caches: a quarter of the caches, the same question pass; what is added, by hand."""
    load = Load(64, 72, 40)
    single = estimate(large, NF4, Lora(), load)
    shared = estimate(large, NF4, Lora(), replace(load, rows_of_cache=4))
    assert shared.cache * 4 == single.cache
    assert (shared.activations, shared.appended, shared.logits) == (single.activations, single.appended, single.logits)
    asked = estimate(large, NF4, Lora(), replace(load, rows_of_cache=4, references=16, texts=2))
    references, texts = 16 * large.vocabulary * 4, 2 * 72 * large.vocabulary * (2 + 12 + 4)
    assert asked.logits - shared.logits == references + texts
    text = estimate(large, NF4, Lora(), Load(2, 0, 72)).activations
    assert asked.activations - shared.activations == text
    recomputed = estimate(large, NF4, Lora(), replace(load, rows_of_cache=4, recompute=True))
    assert recomputed.cache == single.cache + shared.cache  # the rows' copies stay until the backward pass


# The tables of docs/clusters.md.
CONTEXT, QUESTION, BATCH = 128, 48, 16
WHERE = {
    "one GPU": Load(BATCH, CONTEXT, QUESTION),
    "one GPU, recompute": Load(BATCH, CONTEXT, QUESTION, recompute=True),
    "DDP": Load(BATCH, CONTEXT, QUESTION, strategy="ddp", world_size=8),
    "FSDP, 2 GPUs": Load(BATCH, CONTEXT, QUESTION, strategy="fsdp", world_size=2),
    "FSDP, 8 GPUs": Load(BATCH, CONTEXT, QUESTION, strategy="fsdp", world_size=8),
}
CARDS = (24, 48, 80)


def batches_on_cards(name: str, shape: Shape) -> list[str]:
    """The largest micro-batch on each card, row by row."""
    rows = []
    for title, load in WHERE.items():
        found = [largest_batch(shape, NF4, Lora(), load, memory.USABLE * card * 2**30) for card in CARDS]
        rows.append(f"| {name} | {title} | " + " | ".join(str(batch) if batch else "none" for batch in found) + " |")
    return rows


def parts_table(columns: dict[str, memory.Memory]) -> str:
    """Estimates side by side as a table in Markdown, in GiB."""
    lines = ["| part, GiB | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, title in memory.PARTS.items():
        cells = [f"{getattr(estimated, name) / 2**30:.2f}" for estimated in columns.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["qwen2.5-coder-32b", "qwen2.5-7b"])
def test_tables_of_the_guide_are_computed(name: str) -> None:
    """Memory by part, and the largest micro-batch on cards of three sizes."""
    guide = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    shape = decoder_shape(random_config(name))
    parts = parts_table({title: estimate(shape, NF4, Lora(), load) for title, load in WHERE.items()})
    assert parts in guide, parts
    rows = batches_on_cards(name, shape)
    assert all(row in guide for row in rows), "\n".join(rows)


def test_peaks_on_a_gpu_are_the_computed_ones() -> None:
    """Of the 32B on an H200, at the smallest and the largest batch, within 3 %; and the guide says both."""
    guide = " ".join((ROOT / "docs" / "clusters.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "docs" / "results" / "gpu-day" / "speed-32b.json").read_text(encoding="utf-8"))["result"]
    longest = [found[f"{part}_tokens"]["longest"] for part in ("context", "question")]
    shape = decoder_shape(random_config("qwen2.5-coder-32b"))
    rows = [row for row in found["rows"] if row["path"] == "batched, reuse"]
    assert [row["batch"] for row in rows] == [4, 128]
    for row in rows:
        computed = estimate(shape, NF4, Lora(), Load(row["batch"], *longest)).device / 2**30
        assert row["peak_gib"] == pytest.approx(computed, rel=0.03)
        assert f"{row['batch']} trials: {computed:.1f} GiB computed, {row['peak_gib']:.1f} measured" in guide


@pytest.mark.slow
def test_a_real_model() -> None:
    """The embedded SmolLM2, as the quickstart trains it: what docs/clusters.md says is measured, within 5 %."""
    base, lora, load = BaseModel(), Lora(), Load(8, CONTEXT, QUESTION, "32-true", device="cpu")
    computed = estimate(decoder_shape(load_config(base)), base, lora, load)
    module = module_of(base, lora, "32-true")
    held = sum(parameter.nbytes for name, parameter in module.named_parameters() if "lora_" not in name)
    kept = kept_for_backward(module, prefilled(module, load), "32-true")
    assert computed.weights == held
    assert computed.activations == pytest.approx(kept, rel=0.05)
    guide = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    for title, now, real in (("weights", computed.weights, held), ("activations", computed.activations, kept)):
        shown = re.search(rf"\| {title} \| {now / 2**20:.0f} \| (\d+) \|", guide)
        assert shown, f"{title}: {now / 2**20:.0f} | {real / 2**20:.0f}"
        assert int(shown[1]) == pytest.approx(real / 2**20, rel=0.02)
