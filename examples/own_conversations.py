"""Ask a detector about conversations of your own: false alarms and hits by kind of text, before you rely on it.

    python examples/own_conversations.py

Give your own with ``--conversations FILE``: a line of JSON each, as in examples/conversations.jsonl
(docs/conversations.md has the other formats). An adapter calls clean text steered if it is unlike the text of its
training; this shows it. The figure has every conversation, clean and steered, by kind.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from example_detector import arguments, load, save
from matplotlib.figure import Figure

from introspection_lit import Steering, load_contexts
from introspection_lit.report.log_odds_plot import CLEAN, STEERED

CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")

if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--conversations", default=str(CONVERSATIONS), help="File; default: twelve of three kinds.")
    parser.add_argument("--strength", type=float, default=1.0, help="Share of the residual norm (default: 1).")
    args = parser.parse_args()
    contexts = load_contexts(args.conversations)
    detector = load(args.adapter)
    assert detector.bank is not None
    directions = detector.bank.directions["heldout"]
    steerings = [Steering(directions[number % len(directions)], args.strength) for number in range(len(contexts))]
    answers: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for context, clean, steered in zip(
        contexts, detector.ask_many(contexts), detector.ask_many(contexts, steerings), strict=True
    ):
        answers[context.kind].append((clean.log_odds, steered.log_odds))
    figure = Figure(figsize=(6, 1.4 + 0.5 * len(answers)), layout="constrained")
    panel = figure.subplots()
    for place, (kind, pairs) in enumerate(answers.items()):
        above = (np.array(pairs) > detector.threshold).sum(axis=0)
        print(f"{kind:14} false alarms {above[0]} of {len(pairs)}   hits {above[1]} of {len(pairs)}")
        for column, (name, colour, marker) in enumerate(
            (("clean", CLEAN, "o"), (f"strength {args.strength:g}", STEERED, "D"))
        ):
            heights = place + np.linspace(-0.12, 0.12, len(pairs)) + (0.18 if column else -0.18)
            label = name if place == 0 else None
            panel.scatter([pair[column] for pair in pairs], heights, color=colour, marker=marker, s=24, label=label)
    panel.axvline(detector.threshold, color="black", linewidth=1, linestyle="--", label="threshold")
    for edge in range(1, len(answers)):
        panel.axhline(edge - 0.5, color="#DDDDDD", linewidth=0.8)
    panel.set_yticks(range(len(answers)), list(answers))
    panel.invert_yaxis()
    panel.set_xlabel("log-odds, logit(yes) - logit(no)")
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    save(figure, "own_conversations.png", args.adapter, args.out)
