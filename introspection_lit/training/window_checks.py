"""Checks that what is steered can be read where the answer is, in models whose layers look back a limited way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_info

from introspection_lit.models.attention_reach import LayerReach, layer_reaches, tokens_back
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.steering.bands import Bands
    from introspection_lit.training.run_context import RunContext
    from introspection_lit.training.split_builder import BandSets
    from introspection_lit.trials.split import Split
    from introspection_lit.utils.lazy_types import PretrainedConfig


def unread_band(reaches: Sequence[LayerReach], band: tuple[int, int], question: int) -> str | None:
    """Check that a question is short enough for what is steered to be read at its end; a sentence if not.

    Args:
        reaches: What each decoder layer reads.
        band: First and last steered layer.
        question: Tokens of the question, start of the answer included.
    """
    back = tokens_back(reaches, band[0])
    if back is None or back >= question:
        return None
    lower = [first for first in range(band[0]) if (tokens_back(reaches, first) or question) >= question]
    expected = f"Expected a band that begins at layer {lower[-1]} or below" if lower else "No band reaches further"
    return (
        f"the layers above {band[0]} look back {back} tokens together (sliding windows, convolutions), and a question has "
        f"{question}: nothing that is steered at {list(band)} is read where the answer is, so a steered trial would be a "
        f"clean one with the wrong label. {expected}; or ask a shorter question."
    )


def check_windows(
    run: RunContext, config: PretrainedConfig, splits: Mapping[str, Split], bands: BandSets, of_grid: bool
) -> None:
    """Check that what is steered is read where the answer is; say if that holds for a part of it.

    Args:
        run: The run.
        config: The decoder's configuration.
        splits: By name.
        bands: Steered bands.
        of_grid: The splits are those of a grid.

    Raises:
        ConfigurationError: It is not, in some split.
    """
    tested = ("bands" if run.options.test_bands is None else "test_bands", bands.tests)
    grid = ("grid.bands", bands.grid) if of_grid else tested
    of_splits = {name: ("bands", bands.training) if name in ("train", "validation") else grid for name in splits}
    problems, notes = window_checks(config, splits, of_splits)
    for note in notes:
        rank_zero_info(note)
    if problems:
        raise ConfigurationError(problems)


def window_checks(
    config: PretrainedConfig, splits: Mapping[str, Split], bands: Mapping[str, tuple[str, Bands]]
) -> tuple[list[str], list[str]]:
    """Check the bands of all splits.

    Args:
        config: The decoder's configuration.
        splits: By name.
        bands: The option that says where a split is steered, and the bands, by the split's name.

    Returns:
        Problems; and notes about tokens of long contexts that are steered for nothing.
    """
    reaches, problems, notes = (
        layer_reaches(config),
        dict[str, None](),
        dict[tuple[str, tuple[int, int]], tuple[int, int]](),
    )
    if all(reach.tokens is None for reach in reaches):
        return [], []
    for name, split in splits.items():
        option, steered = bands[name]
        limited = [(band, back) for band in dict.fromkeys(steered) if (back := tokens_back(reaches, band[0])) is not None]
        if not limited:
            continue
        question = longest_question(split)
        longest = max(split.lengths()) + question
        for band, back in limited:
            if problem := unread_band(reaches, band, question):
                problems[f"data.{option}: {problem}"] = None
            elif back < longest:
                notes[option, band] = (back, max(longest, notes.get((option, band), (0, 0))[1]))
    texts = [
        f"data.{option}: of what is steered at {list(band)}, the last {back} tokens before an answer can be read there "
        f"(sliding windows); contexts with their questions have up to {longest}"
        for (option, band), (back, longest) in notes.items()
    ]
    return list(problems), texts


def longest_question(split: Split) -> int:
    """Tokens of the longest question of a split, start of the answer included."""
    if split.questionnaire is not None:
        split = replace(split, questionnaire=None, questions=split.questionnaire.longest_texts(), roles=(), _encoded={})
    own = [number for number, context in enumerate(split.contexts) if context.question_turns] or [0]
    places = [(context, question) for context in own for question in range(len(split.questions))]
    return max(len(split.encoded(*place).question_ids) for place in places)
