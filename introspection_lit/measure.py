"""What a bank needs to know about a model: residual norms by layer, and activations of concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from introspection_lit.prefill import Forward, pad, position_ids, writing_mode
from introspection_lit.vectors import RANDOM_SPLITS, VectorBank, random_unit_vectors, unit_directions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

CONCEPTS = (
    "bread", "cats", "the ocean", "mathematics", "winter", "music", "gold", "sleep",
    "trains", "gardens", "anger", "justice", "computers", "mountains", "dancing", "money",
)  # fmt: skip
# The concept stands early, so that the words after it are read in its light.
TEMPLATES = (
    "I keep thinking about {} and it will not leave my mind.",
    "Tell me everything that you know about {} and why people care.",
    "This essay on {} begins with a memory from long ago.",
    "Nothing but {} matters here, from the first word to the last.",
)


@contextmanager
def record(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the output of every decoder layer while the block runs.

    Yields:
        A list that each forward pass fills with one ``(batch, seq, hidden)`` tensor a layer, before the final norm.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def token_means(
    forward: Forward, model: PeftModel, layers: Sequence[nn.Module], rows: Sequence[Sequence[int]], batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Read the residual stream of clean texts after every layer.

    The first token of a text is left out: models park a huge norm there, whatever the text.

    Args:
        forward: What to call; the model or the wrapper around it.
        model: The model; its adapter is off while reading.
        layers: Its decoder layers.
        rows: The tokens of each text, at least two.
        batch_size: Texts read at once.

    Returns:
        The mean activation of each text, ``(texts, layers, hidden)``, and the norms of all tokens, ``(layers, tokens)``;
        float32 on the CPU.
    """
    device = next(model.parameters()).device
    means, norms = [], []
    for start in range(0, len(rows), batch_size):
        ids, mask = (tensor.to(device) for tensor in pad(rows[start : start + batch_size], 0, "right"))
        with writing_mode(model, adapter=False), record(layers) as outputs:
            forward(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                use_cache=False,
                logits_to_keep=1,
            )
        stream = torch.stack([output.float() for output in outputs])[:, :, 1:]
        kept = mask[:, 1:].bool()
        norms.append(stream.norm(dim=-1)[:, kept].cpu())
        means.append(((stream * kept[..., None]).sum(dim=2) / kept.sum(dim=1)[:, None]).transpose(0, 1).cpu())
    return torch.cat(means), torch.cat(norms, dim=1)


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
) -> VectorBank:
    """Draw the random directions, extract the concepts and measure the residual norms.

    A concept's direction at a layer is its mean activation there over several sentences, minus the mean of all concepts.

    Args:
        forward: What to call; the model or the wrapper around it.
        model: The model with its adapter.
        layers: Its decoder layers.
        tokenizer: Its tokenizer.
        contexts: Tokens of clean contexts, on which the residual norms are measured.
        sizes: How many random directions each split gets.
        concepts: Words or phrases, at least two.
        seed: The experiment's seed.
        metadata: ``base_model`` and ``revision``.
    """
    _, norms = token_means(forward, model, layers, contexts)
    sentences = [template.format(concept) for concept in concepts for template in TEMPLATES]
    means, _ = token_means(forward, model, layers, [tokenizer(sentence)["input_ids"] for sentence in sentences])
    by_concept = means.reshape(len(concepts), len(TEMPLATES), *means.shape[1:]).mean(dim=1)
    hidden = by_concept.shape[-1]
    directions = {split: random_unit_vectors(sizes[split], hidden, seed, split) for split in RANDOM_SPLITS}
    names = {split: [f"{split}-{index}" for index in range(sizes[split])] for split in RANDOM_SPLITS}
    return VectorBank(
        directions={**directions, "concept": unit_directions(by_concept)},
        names={**names, "concept": list(concepts)},
        residual_norms=norms.median(dim=1).values,
        metadata={**metadata, "seed": str(seed), "layer": "concepts: the output of each layer; random: any"},
    )
