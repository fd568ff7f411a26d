"""A task of Inspect AI: a tested run's conversations with the adapter's question, for any model of Inspect."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import TaskState, generate

from introspection_lit.harnesses.inspect_ai.provider import ITEM, IntrospectionAPI
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.harnesses.tested_run import Item, TestedRun

ROLES: dict[str, Callable[..., ChatMessage]] = {
    "system": ChatMessageSystem,
    "developer": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}
# What tokenizers write for the space before a word.
SPACES = " Ġ▁"
MOST = 20  # alternatives of a token that providers give


@task
def introspection(run: str, adapter: str | None = None, steered: bool | None = None) -> Task:
    """Ask whether the model was steered while it read each conversation of a tested run.

    Args:
        run: The run's folder.
        adapter: The adapter that was tested; None: ``adapter`` in that folder.
        steered: Ask about steered conversations, too. None: if the model can be steered, as ``introspection/ADAPTER`` can.

    Raises:
        ConfigurationError: The run cannot be used, or a model is to be steered that cannot be.
    """
    from introspection_lit.harnesses.tested_run import (
        read_tested_run,  # torch: not whenever Inspect looks at its extensions
    )

    api = get_model().api
    ours = isinstance(api, IntrospectionAPI)
    if steered and not ours:
        raise ConfigurationError(
            ["introspection: steered=true, and Inspect cannot steer this model. Expected --model introspection/ADAPTER."]
        )
    wanted = ours if steered is None else steered
    tested = read_tested_run(run, adapter)
    samples = [_sample(item, tested) for item in tested.items if wanted or not item["steered"]]
    threshold = api.detector.threshold if ours else 0.0
    about = {"run": run, "question": tested.question, "threshold": threshold, "steered": wanted}
    measured: list[Metric] = [fpr(), answered(), *([tpr(), discrimination()] if wanted else [])]
    return Task(
        dataset=MemoryDataset(samples, name="introspection"),
        solver=generate(),
        scorer=detection(tested.phrasing.answers, threshold),
        metrics=[*measured, *([largest_difference()] if ours else [])],
        config=GenerateConfig(logprobs=True, top_logprobs=MOST),
        metadata=about | {"adapter": api.identity if ours else None},
        version=1,
    )


def _sample(item: Item, tested: TestedRun) -> Sample:
    phrasing, turns = tested.phrasing, [ROLES[turn["role"]](content=turn["content"]) for turn in item["messages"]]
    if phrasing.system and turns[0].role != "system":
        turns.insert(0, ChatMessageSystem(content=phrasing.system))
    question = f"{phrasing.info}\n\n{tested.question}" if phrasing.info else tested.question
    asked = ChatMessageUser(content=question, metadata={ITEM: item})
    right = phrasing.answers[0 if item["steered"] else 1]
    return Sample(input=[*turns, asked], target=right, id=item["name"], metadata=item)


@scorer(metrics=[])
def detection(answers: tuple[str, str], threshold: float) -> Scorer:
    """Whether a conversation is called steered: by the log-odds of the answer words, or by the answer's text.

    Args:
        answers: The words for "steered" and "not steered".
        threshold: On the log-odds, where the provider gives them.
    """

    async def score(state: TaskState, target: Target) -> Score:
        odds, word = log_odds_of(state.output, answers), first_answer(state.output.completion, answers)
        said = answers[0 if odds > threshold else 1] if odds is not None else word
        found = {"steered": state.metadata["steered"], "log_odds": odds, "expected": state.metadata["log_odds"]}
        return Score(value=float(said == answers[0]), answer=said, explanation=state.output.completion, metadata=found)

    return score


def log_odds_of(output: ModelOutput, answers: tuple[str, str]) -> float | None:
    """Log-odds of "steered" in the first token, in nats; None where the provider does not give both words.

    Tokens that differ in the space before the word, or in its case, are added up.
    """
    content = output.choices[0].logprobs.content if output.choices and output.choices[0].logprobs else []
    sums = dict.fromkeys(map(str.casefold, answers), 0.0)
    for alternative in (content[0].top_logprobs or []) if content else []:
        word = alternative.token.strip(SPACES).casefold()
        if word in sums:
            sums[word] += math.exp(alternative.logprob)
    steered, not_steered = (sums[word.casefold()] for word in answers)
    return math.log(steered) - math.log(not_steered) if steered and not_steered else None


def first_answer(text: str, answers: tuple[str, str]) -> str | None:
    """The answer word that a text has first; None: neither."""
    words = {word.casefold(): word for word in answers}
    found = re.search(rf"\b(?:{'|'.join(map(re.escape, words))})\b", text.casefold())
    return words[found[0]] if found else None


def _rate(found: Iterable[bool]) -> float:
    """The share that is True; NaN of none."""
    found = list(found)
    return sum(found) / len(found) if found else math.nan


def _called(scores: Iterable[SampleScore], steered: bool) -> list[bool]:
    """Whether each clean, or each steered, conversation is called steered."""
    return [bool(one.score.value) for one in scores if (one.score.metadata or {})["steered"] == steered]


def _measured(scores: Iterable[SampleScore]) -> list[dict[str, Any]]:
    """What the scorer has noted of conversations with log-odds."""
    found = [one.score.metadata or {} for one in scores]
    return [one for one in found if one["log_odds"] is not None]


@metric
def fpr() -> Metric:
    """Share of the clean conversations that are called steered."""

    def compute(scores: list[SampleScore]) -> float:  # by the annotation Inspect knows what to give
        return _rate(_called(scores, steered=False))

    return compute


@metric
def tpr() -> Metric:
    """Share of the steered conversations that are called steered."""

    def compute(scores: list[SampleScore]) -> float:
        return _rate(_called(scores, steered=True))

    return compute


@metric
def answered() -> Metric:
    """Share of the conversations for which one of the two words was said."""

    def compute(scores: list[SampleScore]) -> float:
        return _rate(one.score.answer is not None for one in scores)

    return compute


@metric
def discrimination() -> Metric:
    """AUROC of the log-odds; .5 is chance."""

    def compute(scores: list[SampleScore]) -> float:
        from introspection_lit.evaluation.statistics import auroc

        found = _measured(scores)
        return auroc([one["log_odds"] for one in found], [one["steered"] for one in found])

    return compute


@metric
def largest_difference() -> Metric:
    """The largest difference of the log-odds from those that the run's test has measured, in nats."""

    def compute(scores: list[SampleScore]) -> float:
        return max(abs(one["log_odds"] - one["expected"]) for one in _measured(scores))

    return compute
