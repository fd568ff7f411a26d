"""Steer a model with nnsight while it reads a conversation, then ask a detector about the KV cache that remains.

    pip install nnsight
    python examples/steer_with_nnsight.py lightning_logs/quickstart/version_0/adapter

Prints the detector's log-odds beside those of its own steering with the same vector; they differ by rounding.
"""

from __future__ import annotations

import argparse

import torch
from nnsight import NNsight
from transformers import DynamicCache

from introspection_lit import Detector, Steering

TALK = ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan.")


def main(adapter: str) -> None:
    """Steer at four strengths, in both ways."""
    detector = Detector.from_pretrained(adapter, device="cpu")
    assert detector.bank is not None, "the run's vectors.safetensors lies above the adapter; elsewhere, set detector.bank"
    direction = detector.bank.directions["heldout"][0]  # (hidden,), of length 1; yours may come from anywhere
    first, last = len(detector.layers) // 3, len(detector.layers) // 2
    base = detector.model.get_base_model()
    traced, ids = NNsight(base), detector.context_ids(*TALK)
    differences = []
    for share in (0.0, 0.1, 0.3, 1.0):
        length = share * float(detector.bank.residual_norms[first])
        cache = DynamicCache(config=base.config)
        # The adapter only reads caches: it is off while the base model writes one.
        with torch.no_grad(), detector.model.disable_adapter(), traced.trace(ids, past_key_values=cache, use_cache=True):
            for layer in range(first, last + 1):
                # A layer's output is (batch, tokens, hidden); output[0] would be the first conversation of a batch.
                traced.model.layers[layer].output[:] += length * direction
        theirs = detector.ask_cache(cache, *TALK)
        ours = detector.ask(*TALK, Steering(direction, length, (first, last), "absolute") if length else None)
        differences.append(abs(theirs.log_odds - ours.log_odds))
        print(f"length {length:7.3f}: nnsight {theirs.log_odds:+8.4f}   introspection_lit {ours.log_odds:+8.4f}")
    print(f"largest difference of the log-odds: {max(differences):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="Folder or hub id of an adapter.")
    main(parser.parse_args().adapter)
