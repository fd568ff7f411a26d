"""A trial as the model reads it, for a terminal: its text, which tokens are steered, and where the answer is read."""

from __future__ import annotations

from itertools import groupby

import torch
from rich.console import Console
from rich.text import Text

from introspection_lit.trials.interventions import steered_positions
from introspection_lit.trials.split import Split
from introspection_lit.trials.trial import Trial, subtracted
from introspection_lit.utils.errors import visible

# Around steered text, and at the position whose next token is scored; colours alone are lost in files.
STEERED, ANSWER = "⟦⟧", "▮"
STYLE, ANSWER_STYLE = "black on yellow", "bold reverse"


def shown_trial(split: Split, trial: Trial) -> Text:
    """Write a trial out, with what is steered in :data:`STEERED` and in colour, and the answer's place.

    Args:
        split: The trial's.
        trial: The trial.
    """
    encoded, query = split.encoded_trial(trial), split.query(trial)
    shares = _shares(split, trial, len(encoded.context_ids))
    (first, last), sign = trial.band, subtracted(trial.opposite)
    what = f"steered at layers {first} to {last}, strength {trial.strength:.3g}{sign}" if any(shares) else "clean"
    changed = f", cache changed: {trial.change}" if trial.change else ""
    context = split.contexts[trial.context]
    shown = Text(
        visible(
            f"{trial.split}:{trial.number}, as the model reads it; {what}{changed}; context of kind {context.kind!r}:\n\n"
        )
    )
    for steered, group in groupby(zip(shares, encoded.context_ids, strict=True), key=lambda pair: pair[0]):
        text = visible(split.tokenizer.decode([token for _, token in group], clean_up_tokenization_spaces=False))
        shown.append(f"{STEERED[0]}{text}{STEERED[1]}" if steered else text, STYLE if steered else "")
    question = split.tokenizer.decode(encoded.question_ids, clean_up_tokenization_spaces=False)
    shown.append(visible(question)).append(ANSWER, ANSWER_STYLE)
    words = " or ".join(f"{word!r} ({number})" for word, number in zip(query.answers.words, query.answers.ids, strict=True))
    legend = (
        f"\n\n{STEERED[0]}{STEERED[1]}: steered ({sum(shares)} of {len(shares)} tokens of the context). "
        if any(shares)
        else "\n\n"
    )
    return shown.append(visible(f"{legend}{ANSWER}: the answer, token {words}\n"))


def _shares(split: Split, trial: Trial, length: int) -> list[bool]:
    """Whether something is added at each token of a trial's context."""
    if not trial.strength or split.control == "no_steering":
        return [False] * length
    shares = steered_positions([trial], torch.ones(1, length), split.source.positions, split.part_spans, split.seed)
    return [share > 0 for share in shares[0].tolist()]


def print_trial(split: Split, trial: Trial) -> None:
    """Print a trial on the terminal, or without colours into a file."""
    Console(highlight=False, markup=False, emoji=False).print(shown_trial(split, trial), soft_wrap=True)
