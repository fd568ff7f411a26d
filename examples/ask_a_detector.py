"""Ask an adapter whether the model was steered while it read a conversation: once it was not, then it was.

    python examples/ask_a_detector.py lightning_logs/quickstart/version_0/adapter

Without an adapter one is trained on a tiny model with random weights, in a minute: it finds strong steering, but gives the
two answers hardly any probability (mass). For a real model, train first: ``python -m introspection_lit fit --config
configs/quickstart.yaml`` takes six minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from example_detector import train

from introspection_lit import Detector, Steering

CONVERSATIONS = [
    ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan."),
    ("Sort these numbers: 7, 3, 5.", "3, 5, 7."),
]


def ask(adapter: Path) -> None:
    """Print what the detector says of each conversation, clean and steered along a direction that it has never seen."""
    detector = Detector.from_pretrained(adapter)
    print(f"{detector.question} Threshold: {detector.threshold:+.2f}")
    assert detector.bank is not None, "the run's vectors.safetensors lies above the adapter; elsewhere, set detector.bank"
    direction = detector.bank.directions["heldout"][0]
    for strength in (0, 1, 2, 4):
        steering = Steering(direction, strength, band="middle") if strength else None
        for (user, _), answer in zip(CONVERSATIONS, detector.ask_many(CONVERSATIONS, steering), strict=True):
            verdict = "steered" if answer.steered else "clean"
            print(f"strength {strength}: {verdict:8} log-odds {answer.log_odds:+7.3f}   mass {answer.mass:.4f}   {user}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", nargs="?", help="Folder or hub id of an adapter; default: one is trained.")
    given = parser.parse_args().adapter
    with tempfile.TemporaryDirectory() as folder:
        ask(given or train(folder))
