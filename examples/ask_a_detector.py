"""Ask an adapter whether the model was steered while it read a conversation: once it was not, then it was.

    python examples/ask_a_detector.py

With the adapter that comes with this package, for SmolLM2-135M-Instruct; name the folder or hub id of another one after it.
"""

from __future__ import annotations

import argparse

from example_detector import load

from introspection_lit import Detector, Steering

CONVERSATIONS = [
    ("What should I cook tonight?", "A risotto with mushrooms: it takes half an hour, and one pan."),
    ("Sort these numbers: 7, 3, 5.", "3, 5, 7."),
]


def ask(detector: Detector) -> None:
    """Print what the detector says of each conversation, clean and steered along a direction that it has never seen."""
    print(f"{detector.question} Threshold: {detector.threshold:+.2f}")
    assert detector.bank is not None
    direction = detector.bank.directions["heldout"][0]
    for strength in (0, 0.5, 1, 2):
        steering = Steering(direction, strength, band="middle") if strength else None
        for (user, _), answer in zip(CONVERSATIONS, detector.ask_many(CONVERSATIONS, steering), strict=True):
            verdict = "steered" if answer.steered else "clean"
            print(f"strength {strength}: {verdict:8} log-odds {answer.log_odds:+7.3f}   mass {answer.mass:.4f}   {user}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "adapter", nargs="?", help="Folder or hub id of an adapter; default: the one that comes with this package."
    )
    ask(load(parser.parse_args().adapter))
