"""Tasks of lm-evaluation-harness: a tested run's conversations with the adapter's question, in one pass each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from introspection_lit.contexts.conversations import encode, render
from introspection_lit.contexts.rows import as_context
from introspection_lit.evaluation.statistics import auroc, rate
from introspection_lit.harnesses.tested_run import BANK, Item, identity_of, read_tested_run, tokenizer_of
from introspection_lit.tasks.answer_tokens import find_answer_tokens
from introspection_lit.utils.errors import ConfigurationError

# Metric: how it is computed from the values of its trials, and whether more is better.
METRICS = {
    "auroc": (lambda pairs: auroc([score for _, score in pairs], [steered for steered, _ in pairs]), True),
    "tpr": (rate, True),
    "fpr": (rate, False),
    "mass": (lambda masses: sum(masses) / len(masses), True),
    "largest_difference": (max, False),
}


class CleanIntrospection(Task):
    """The clean trials, asked of any model that gives log-likelihoods.

    Metrics: ``fpr`` at the adapter's threshold; ``mass`` of the two answer words; and ``largest_difference`` of the
    log-odds from those that the run's own test has measured, in nats.

    Args:
        config: Of the YAML file. ``metadata``, which holds the model's arguments too, may name the ``run``; without it, it
            is the folder that holds the adapter (``peft``).
    """

    VERSION = 1
    OUTPUT_TYPE = "loglikelihood"
    REQUEST = "loglikelihood"
    STEERED = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = config.get("metadata") or {}
        adapter = given.get("peft") or given.get("adapter")
        if not (adapter or given.get("run")):
            raise ConfigurationError(
                ["introspection: no run is named. Give --metadata run=FOLDER, or the adapter with peft=FOLDER/adapter."]
            )
        self.run = read_tested_run(given.get("run") or Path(str(adapter)).parent, adapter)
        self.tokenizer = tokenizer_of(self.run.adapter, given.get("pretrained"))
        self.phrasing, self.answer_ids = find_answer_tokens(self.tokenizer, [], [self.run.question], self.run.phrasing)
        settings = dict(config)
        settings.pop("class", None)
        super().__init__(config=settings)

    def dump_config(self) -> dict[str, Any]:
        """The configuration for the harness's log, with the adapter's identity."""
        return super().dump_config() | {"adapter": identity_of(self.run.adapter)}

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the trials are in the run's folder."""

    def has_training_docs(self) -> bool:
        """None."""
        return False

    def has_validation_docs(self) -> bool:
        """None."""
        return False

    def has_test_docs(self) -> bool:
        """The trials."""
        return True

    def test_docs(self) -> list[Item]:
        """The trials, each with its tokens."""
        return [self._with_tokens(item) for item in self.run.items if self.STEERED or not item["steered"]]

    def _with_tokens(self, item: Item) -> Item:
        encoded = encode(self.tokenizer, as_context(item["messages"]), self.run.question, self.phrasing)
        tokens = {"context_ids": encoded.context_ids, "question_ids": encoded.question_ids, "answer_ids": self.answer_ids}
        return item | tokens | {"bank": str(self.run.folder / BANK)}

    def doc_to_text(self, doc: Item) -> str:
        """Conversation, question and start of the answer, by the chat template."""
        text, _ = render(self.tokenizer, as_context(doc["messages"]), self.run.question, self.phrasing)
        return text

    def doc_to_target(self, doc: Item) -> str:
        """The right answer word."""
        return self._continuation(0 if doc["steered"] else 1)

    def _continuation(self, answer: int) -> str:
        """An answer word with what joins it to the text."""
        word = self.phrasing.answers[answer]
        before = self.tokenizer("is", add_special_tokens=False)["input_ids"]
        spaced = self.tokenizer(f"is {word}", add_special_tokens=False)["input_ids"]
        return f" {word}" if spaced == [*before, self.answer_ids[answer]] else word

    def fewshot_context(self, doc: Item, *args: Any, **kwargs: Any) -> str:
        """The text alone: examples would be read as a part of the conversation that is asked about."""
        if kwargs.get("num_fewshot") or kwargs.get("system_instruction"):
            raise ConfigurationError(["introspection: it takes no --num_fewshot and no --system_instruction."])
        return self.doc_to_text(doc)

    def construct_requests(self, doc: Item, ctx: str, **kwargs: Any) -> list[Instance]:
        """The log-likelihood of each answer word."""
        asked = [(ctx, self._continuation(answer)) for answer in (0, 1)]
        return [Instance(self.REQUEST, doc, arguments, idx, kwargs["metadata"]) for idx, arguments in enumerate(asked)]

    def process_results(self, doc: Item, results: list[tuple[float, bool]]) -> dict[str, Any]:
        """The metrics of one trial."""
        (yes, _), (no, _) = results
        log_odds = yes - no
        rates = {"tpr" if doc["steered"] else "fpr": log_odds > self.run.threshold}
        both = {"auroc": (doc["steered"], log_odds)} if self.STEERED else {}
        return rates | both | {"mass": math.exp(yes) + math.exp(no), "largest_difference": abs(log_odds - doc["log_odds"])}

    def aggregation(self) -> dict[str, Any]:
        """How each metric is computed from its trials."""
        return {name: compute for name, (compute, _) in self._metrics()}

    def higher_is_better(self) -> dict[str, bool]:
        """Of each metric."""
        return {name: better for name, (_, better) in self._metrics()}

    def _metrics(self) -> Iterable[tuple[str, Any]]:
        return ((name, metric) for name, metric in METRICS.items() if self.STEERED or name not in ("auroc", "tpr"))


class Introspection(CleanIntrospection):
    """All trials, clean and steered: also ``tpr`` and ``auroc``. Needs a model that steers.

    The kind of its requests is one that only :class:`~introspection_lit.harnesses.lm_eval.model.SteeredModel` answers: any
    other model would read the steered trials unsteered.
    """

    REQUEST = "steered_loglikelihood"
    STEERED = True
