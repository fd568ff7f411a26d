"""Builds a vector bank from a model: measures residual norms by layer and extracts concept directions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from introspection_lit.steering.prefill import Forward, no_logits, pad, position_ids, prefill_mode
from introspection_lit.steering.residual import residual
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank, random_unit_vectors
from introspection_lit.utils.errors import RunError
from introspection_lit.utils.kept_tensors import kept_tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


CONCEPTS = (
    "bread", "cats", "the ocean", "mathematics", "winter", "music", "gold", "sleep",
    "trains", "gardens", "anger", "justice", "computers", "mountains", "dancing", "money",
    "horses", "love", "war", "rain", "chess", "coffee", "medicine", "ancient Rome", "fire", "silence",
)  # fmt: skip
# The concept comes early, so that it influences the tokens after it.
TEMPLATES = (
    "I keep thinking about {} and it will not leave my mind.",
    "Tell me everything that you know about {} and why people care.",
    "This essay on {} begins with a memory from long ago.",
    "Nothing but {} matters here, from the first word to the last.",
)
# Number of other concepts that each one is contrasted with, in each template, for the principal component.
CONTRASTS = 8


class Readings(NamedTuple):
    """Activations of clean texts in the residual stream after every layer; float32 on the CPU.

    Attributes:
        means: Mean over the tokens of each text, ``(texts, layers, hidden)``.
        last: Activation of the last token, ``(texts, layers, hidden)``.
        norms: Norm of every token of all texts, ``(layers, tokens)``.
    """

    means: Tensor
    last: Tensor
    norms: Tensor


@contextmanager
def record_outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record the output of every decoder layer inside the block.

    Yields:
        A list to which each forward pass appends one ``(batch, seq, hidden)`` tensor for each layer, before the final norm.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(residual(module, output))

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def read_texts(
    forward: Forward, model: PeftModel, layers: Sequence[nn.Module], rows: Sequence[Sequence[int]], batch_size: int = 16
) -> Readings:
    """Measure the residual stream of clean texts after every layer.

    The first token of a text is left out of means and norms, because its norm is huge for any text.

    Args:
        forward: The model, or its DDP or FSDP wrapper.
        model: The model; its adapter is off here.
        layers: Its decoder layers.
        rows: Tokens of each text, at least two.
        batch_size: Texts in a batch.
    """
    device = next(model.parameters()).device
    readings = []
    for start in range(0, len(rows), batch_size):
        ids, mask = (tensor.to(device) for tensor in pad(rows[start : start + batch_size], 0, "right"))
        with prefill_mode(model, adapter=False), record_outputs(layers) as outputs:
            forward(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                use_cache=False,
                logits_to_keep=no_logits(ids),
            )
        hidden = torch.stack([output.float() for output in outputs])
        last = hidden[:, torch.arange(len(ids)), mask.sum(dim=1) - 1].transpose(0, 1)
        stream, tokens = hidden[:, :, 1:], mask[:, 1:].bool()
        mean = ((stream * tokens[..., None]).sum(dim=2) / tokens.sum(dim=1)[:, None]).transpose(0, 1)
        readings.append(Readings(mean.cpu(), last.cpu(), stream.norm(dim=-1)[:, tokens].cpu()))
    means, lasts, norms = zip(*readings, strict=True)
    return Readings(torch.cat(means), torch.cat(lasts), torch.cat(norms, dim=1))


def mean_differences(activations: Tensor) -> Tensor:
    """The mean activation of each concept minus the mean over all concepts.

    Without centring, what all sentences share dominates and the concepts are nearly collinear.

    Args:
        activations: ``(concepts, templates, layers, hidden)``.

    Returns:
        Differences, not of unit length, ``(concepts, layers, hidden)``.
    """
    by_concept = activations.mean(dim=1)
    return by_concept - by_concept.mean(dim=0, keepdim=True)


def principal_components(activations: Tensor, contrasts: int = CONTRASTS) -> Tensor:
    """The first principal component of contrastive pairs, for each concept and layer.

    A pair is the same sentence with the concept and with another one. Both halves are centred on the middle of their pair;
    the component is that of all halves, with the sign that points to the concept's halves: the method ``pca_center`` of
    repeng. Differs from repeng's default, ``pca_diff``: PCA of the differences removes their mean, which is what all pairs
    of a concept share.

    Args:
        activations: Activations of the last token, as in repeng, ``(concepts, templates, layers, hidden)``.
        contrasts: Number of other concepts that each one is contrasted with: those that follow it in the list.

    Returns:
        Unit vectors, ``(concepts, layers, hidden)``.
    """
    n_concepts, _, n_layers, _ = activations.shape
    others = [[(c + step) % n_concepts for step in range(1, min(contrasts, n_concepts - 1) + 1)] for c in range(n_concepts)]
    directions = torch.empty(n_concepts, *activations.shape[2:])
    for concept in range(n_concepts):
        for layer in range(n_layers):
            here = activations[:, :, layer].numpy()
            negative = here[others[concept]].reshape(-1, here.shape[-1])
            positive = np.tile(here[concept], (len(others[concept]), 1))
            directions[concept, layer] = torch.from_numpy(contrast_component(positive, negative))
    return directions


def contrast_component(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The first principal component of pairs, ``(pairs, hidden)`` each, as a unit vector ``(hidden,)`` float32."""
    from sklearn.decomposition import PCA

    halves = (positive - negative) / 2
    component = PCA(n_components=1, random_state=0).fit(np.concatenate([halves, -halves])).components_[0]
    if ((halves @ component) > 0).mean() < 0.5:
        component = -component
    return (component / np.linalg.norm(component)).astype(np.float32)


def build_bank(
    forward: Forward,
    model: PeftModel,
    layers: Sequence[nn.Module],
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    sizes: dict[str, int],
    concepts: Sequence[str],
    seed: int,
    metadata: dict[str, str],
    components: bool = False,
    trained_concepts: Sequence[str] = (),
    measured_with: Mapping[str, Any] | None = None,
) -> VectorBank:
    """Draw the random directions, extract the concept directions and measure the residual norms.

    A concept's direction at a layer is its mean activation over several sentences, minus the mean over all concepts
    (``concept``); optionally also the principal component of contrastive pairs (``concept_pca``).

    Args:
        forward: The model, or its DDP or FSDP wrapper.
        model: The model with its adapter.
        layers: Its decoder layers.
        tokenizer: Its tokenizer.
        contexts: Tokens of clean contexts, for the residual norms.
        sizes: Number of random directions of each split.
        concepts: Words or phrases, at least three.
        seed: The experiment's seed.
        metadata: ``base_model`` and ``revision``.
        components: Extract ``concept_pca`` too.
        trained_concepts: More words, of which ``concept_train`` is extracted; none: the bank has no such split.
        measured_with: What measurements depend on besides the texts: the model and the arithmetic. With it they are kept in
            the cache for other runs; None: they are not.
    """
    depends_on = None if measured_with is None else {**measured_with, "code": _source_hash()}

    def measure_norms() -> dict[str, Tensor]:
        return {"norms": read_texts(forward, model, layers, contexts).norms.median(dim=1).values}

    def concept_directions(words: Sequence[str], components: bool) -> dict[str, Tensor]:
        rows = [tokenizer(template.format(word))["input_ids"] for word in words for template in TEMPLATES]

        def measure() -> dict[str, Tensor]:
            readings = read_texts(forward, model, layers, rows)
            means, lasts = (part.reshape(len(words), -1, *part.shape[1:]) for part in (readings.means, readings.last))
            differences = mean_differences(means)
            found = {"concept": torch.nn.functional.normalize(differences, dim=-1), "lengths": differences.norm(dim=-1)}
            return found | ({"concept_pca": principal_components(lasts)} if components else {})

        texts = {"texts": rows, "concepts": len(words), "components": components}
        return kept_tensors("concepts", depends_on and depends_on | texts, measure)

    norms = kept_tensors("norms", depends_on and depends_on | {"texts": list(map(list, contexts))}, measure_norms)["norms"]
    measured = concept_directions(concepts, components)
    lengths, hidden = measured.pop("lengths"), measured["concept"].shape[-1]
    directions = {split: random_unit_vectors(sizes[split], hidden, seed, split) for split in RANDOM_SPLITS} | measured
    names = {split: [f"{split}-{index}" for index in range(sizes[split])] for split in RANDOM_SPLITS}
    names |= {split: list(concepts) for split in directions if split not in RANDOM_SPLITS}
    if trained_concepts:
        directions["concept_train"] = concept_directions(trained_concepts, components=False)["concept"]
        names["concept_train"] = list(trained_concepts)
    return VectorBank(
        directions=directions,
        names=names,
        residual_norms=norms,
        metadata={**metadata, "seed": str(seed), "layer": "concepts: the output of each layer; random: any"},
        lengths={"concept": lengths},
    )


def _source_hash() -> str:
    """A hash of this folder's code: what other code has measured is measured again."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def require_finite_norms(bank: VectorBank) -> None:
    """Check that the residual norms of a bank are finite at every layer.

    Raises:
        RunError: They are NaN or infinite: the model's weights are damaged, or overflow in this dtype.
    """
    broken = (~bank.residual_norms.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        raise RunError(
            [
                f"the model's activations on clean contexts are not finite from layer {broken[0]} on: its weights are "
                "damaged, or too large for this dtype. Try model.base.dtype float32 and trainer.precision 32-true."
            ]
        )
