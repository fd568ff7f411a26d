"""Measures training steps whose work grows: longer contexts, more questions of a cache, more trials, more caches kept."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from introspection_lit.cli import attach
from introspection_lit.contexts.context import Context, exchange
from introspection_lit.contexts.conversations import encode
from introspection_lit.tasks.questionnaire import DETECTION
from introspection_lit.tasks.task import TaskOptions
from introspection_lit.tools import pipeline
from introspection_lit.tools.benchmark import benchmark
from introspection_lit.tools.benchmark.measurement import PLAIN, REUSE, TASKS, Amount, Setting
from introspection_lit.tools.scaling.axes import BATCH, CONTEXT, KEPT, QUESTIONS
from introspection_lit.training.options import Reuse
from introspection_lit.trials.plans import TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.utils.errors import ConfigurationError

TOKENS, QUESTION_TOKENS, KEPT_TOKENS = 72, 36, 40
NOTHING = Reuse(layers=False, clean=False)
MOST, TOKENS_IN_ALL = 3, 3000  # a size is measured so often; with more tokens in a step, less often


class TrainingSteps:
    """A model and its training data.

    Args:
        model: Hub id, folder, short name, or ``random:NAME``.
        more: Other options of the command line.
    """

    def __init__(self, model: str, more: tuple[str, ...] = ()) -> None:
        settings = {
            "trainer.devices": 1,
            "trainer.enable_progress_bar": False,
            "trainer.enable_model_summary": False,
            "trainer.logger": False,
            "model.base.name_or_path": model,
            "model.base.dtype": "float32",
            "data.validation_trials": 2,
            "data.test_trials": {"heldout": 2},
            "data.concepts": ["bread", "cats", "the ocean"],
        }
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # repeats the hardware for every fit
        self.cli = attach([*pipeline.as_arguments(settings), *more])
        few = Amount(steps=1, warmup=1, contexts=4, context_tokens=TOKENS, question_tokens=QUESTION_TOKENS)
        benchmark.measure(self.cli, [Setting(PLAIN, 2)], few, NOTHING)  # loads the model and warms up
        self.split: Split = self.cli.datamodule.splits["train"]
        texts = [context.turns[-1].content for context in self.split.contexts]
        self.texts = [text for text in texts if text.isascii()]  # words of one or two tokens each

    def point(self, axis: str, size: int) -> dict[str, Any]:
        """Measure a size.

        Args:
            axis: One of those above.
            size: What it counts.

        Returns:
            ``size``, ``seconds`` of a step, its ``trials``, peak ``memory`` of the process in bytes, ``rounds`` and what
            else a reader needs.
        """
        measures: Mapping[str, Callable[[int], dict[str, Any]]] = {
            CONTEXT: lambda size: self._measure(Setting(PLAIN, 2), NOTHING, 4, size),
            QUESTIONS: lambda size: self._measure(Setting(TASKS, 2 * size), NOTHING, 8, TOKENS, size),
            BATCH: lambda size: self._measure(Setting(PLAIN, size), NOTHING, 2 * size, TOKENS),
            KEPT: lambda size: self._measure(Setting(REUSE, 8), Reuse(gib=64.0), size, KEPT_TOKENS),
        }
        return {"size": size, **measures[axis](size)}

    def _measure(self, setting: Setting, reuse: Reuse, contexts: int, tokens: int, questions: int = 1) -> dict[str, Any]:
        data, plan = self.cli.datamodule, self.split.plan
        assert isinstance(plan, TrialPlan)
        made = [self.context(number, tokens) for number in range(contexts)]
        lengths = [self._tokens(context) for context in made]
        changed = replace(self.split, contexts=made, plan=replace(plan, contexts=contexts), _encoded={}, _lengths=[])
        data.splits["train"] = changed
        asked = {DETECTION: TaskOptions(questions=questions)}
        amount = Amount(1, 1, 2, contexts, tokens, QUESTION_TOKENS, asked)
        each = (2 if questions > 1 else setting.batch) * tokens + 2 * setting.batch * QUESTION_TOKENS
        rounds = max(1, min(MOST, TOKENS_IN_ALL // each))
        measured, too_large, _ = benchmark.measure(self.cli, [setting] * rounds, amount, reuse)
        if too_large:
            raise ConfigurationError([f"memory: a step of {setting.batch} trials of {tokens} tokens does not fit."])
        seconds, memory = [chunk.seconds for _, chunk in measured], max(chunk.memory for _, chunk in measured)
        found = {"seconds": statistics.median(seconds), "trials": setting.batch, "memory": memory, "rounds": rounds}
        found |= {"lowest": min(seconds), "highest": max(seconds), "context_tokens": statistics.fmean(lengths)}
        return found | ({"kept": data.prefill.contexts_kept} if reuse.clean else {})

    def context(self, number: int, tokens: int) -> Context:
        """A context of at least so many tokens, made of texts of the training split from context ``number`` on.

        The shortest one has no less than what the chat template writes. Two numbers give two texts.
        """
        words, following = [f"{number}."], number
        while len(words) <= tokens:
            words += self.texts[following % len(self.texts)].split()
            following += 1
        low, high = 2, len(words)
        while low < high:
            middle = (low + high) // 2
            if self._tokens(self._of(words[:middle])) < tokens:
                low = middle + 1
            else:
                high = middle
        return self._of(words[:low])

    def _of(self, words: list[str]) -> Context:
        return exchange("measured", words[0], " ".join(words[1:]))

    def _tokens(self, context: Context) -> int:
        return len(encode(self.split.tokenizer, context, self.split.questions[0], self.split.phrasing).context_ids)
