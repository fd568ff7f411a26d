"""Steer a model with TransformerLens while it reads a conversation, then ask a detector about the KV cache that remains.

    pip install transformer-lens
    python examples/steer_with_transformer_lens.py lightning_logs/quickstart/version_0/adapter

Prints the detector's log-odds beside those of its own steering with the same vector; they differ by rounding.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from introspection_lit import Detector, Steering

TALK = ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan.")


def main(adapter: str) -> None:
    """Steer at four strengths, in both ways."""
    detector = Detector.from_pretrained(adapter, device="cpu")
    assert detector.bank is not None, "the run's vectors.safetensors lies above the adapter; elsewhere, set detector.bank"
    direction = detector.bank.directions["heldout"][0]  # (hidden,), of length 1; yours may come from anywhere
    first, last = len(detector.layers) // 3, len(detector.layers) // 2
    lengths = [share * float(detector.bank.residual_norms[first]) for share in (0.0, 0.1, 0.3, 1.0)]
    ours = [
        detector.ask(*TALK, Steering(direction, length, (first, last), "absolute") if length else None).log_odds
        for length in lengths
    ]
    # The bridge wraps the detector's own model, and puts its hooks into it: ask the detector alone before this line.
    # With a model object at hand the name is not looked up.
    bridge = TransformerBridge.boot_transformers(
        "the detector's base model", hf_model=detector.model.get_base_model(), tokenizer=detector.tokenizer
    )
    differences = []
    for length, expected in zip(lengths, ours, strict=True):

        def add(residual: Tensor, hook: Any, length: float = length) -> Tensor:
            return residual + length * direction

        hooks = [(f"blocks.{layer}.hook_resid_post", add) for layer in range(first, last + 1)]
        # The adapter only reads caches: it is off while the base model writes one.
        with torch.no_grad(), detector.model.disable_adapter(), bridge.hooks(fwd_hooks=hooks):
            _, cache = bridge(detector.context_ids(*TALK), return_type="logits_and_cache", use_cache=True)
        theirs = detector.ask_cache(cache, *TALK).log_odds
        differences.append(abs(theirs - expected))
        print(f"length {length:7.3f}: TransformerLens {theirs:+8.4f}   introspection_lit {expected:+8.4f}")
    print(f"largest difference of the log-odds: {max(differences):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="Folder or hub id of an adapter.")
    main(parser.parse_args().adapter)
