"""Replay published prompts, each with its own question and answer words: the adapter beside the untrained model.

    python examples/replay_published_prompts.py

Give your own copy with ``--prompts FILE``: conversations as in docs/conversations.md, or a prompt file of earlier work
(``add_injection``, ``continue_msg``, ``yes_token``). The three in examples/published_prompts.json show the format; they
are ours. An adapter of several tasks answers questions that begin with its lead-in: for it, each is also asked so. The
figure has the log-odds of the first answer word against the strength, one panel for each prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from example_detector import arguments, load, save
from matplotlib.figure import Figure

from introspection_lit import Detector, Question, Steering, ask_one_cache, load_contexts
from introspection_lit.contexts.context import Context
from introspection_lit.report.log_odds_plot import ANOTHER, CLEAN, STEERED

PROMPTS = Path(__file__).with_name("published_prompts.json")


def replay(detector: Detector, prompt: Context, strengths: list[float], adapter: bool) -> list[float]:
    """Mean log-odds over four directions that the adapter was not trained on: clean, then at each strength."""
    assert detector.bank is not None
    directions = detector.bank.directions["heldout"][:4]
    conditions = [[None], *([Steering(each, strength) for each in directions] for strength in strengths)]
    means = []
    for condition in conditions:
        answers = [ask_one_cache(detector, prompt, [Question()], steering, adapter)[0] for steering in condition]
        means.append(sum(answer.log_odds for answer in answers) / len(answers))
    return means


def begun(prompt: Context, lead_in: str) -> Context:
    """The same prompt with a lead-in before its question."""
    first, *rest = prompt.question_turns
    return replace(prompt, question_turns=(first._replace(content=f"{lead_in} {first.content}"), *rest))


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--prompts", default=str(PROMPTS), help="File of conversations (default: three of our own).")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    args = parser.parse_args()
    prompts = load_contexts(args.prompts)
    detector = load(args.adapter)
    figure = Figure(figsize=(3.1 * len(prompts) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(prompts), sharey=True, squeeze=False)[0]
    for prompt, panel in zip(prompts, panels, strict=True):
        asked = [("adapter", prompt, STEERED, "o"), ("untrained", prompt, CLEAN, "s")]
        if detector.lead_in:
            asked.append(("with lead-in", begun(prompt, detector.lead_in), ANOTHER, "D"))
        for name, question, colour, marker in asked:
            odds = replay(detector, question, args.strengths, name != "untrained")
            print(f"{prompt.kind:22} {name:12}", "  ".join(f"{value:+7.2f}" for value in odds))
            panel.plot(range(len(odds)), odds, color=colour, marker=marker, label=name)
        panel.set_title(prompt.kind, fontsize=10)
        panel.set_xticks(range(len(args.strengths) + 1), ["clean", *(f"{strength:g}" for strength in args.strengths)])
        panel.axhline(0, color="grey", linewidth=0.8, linestyle=":")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("strength", fontsize=10)
    panels[0].set_ylabel("log-odds of the first answer")
    panels[0].legend(frameon=False)
    save(figure, "replayed.png", args.adapter, args.out)
