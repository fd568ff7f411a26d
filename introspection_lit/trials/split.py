"""A split of the experiment: its plan and texts, and how its trials become padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from introspection_lit.contexts.context import Context, fingerprint
from introspection_lit.contexts.conversations import Encoded, Phrasing, encode
from introspection_lit.contexts.long_conversations import exchange_spans, exchanges_of
from introspection_lit.contexts.splits import without_signal
from introspection_lit.contexts.token_places import line_spans
from introspection_lit.steering.prefill import pad
from introspection_lit.steering.vector_bank import VectorBank
from introspection_lit.tasks.questionnaire import DETECTION, TASK_OF, Questionnaire, Truth
from introspection_lit.tasks.task import AnswerWords, Query
from introspection_lit.trials.batch import EarlyAnswers, References, Texts, TrialBatch
from introspection_lit.trials.changed_rows import SPLICED, as_wide_as_needed, cache_changes, partner_of
from introspection_lit.trials.composed_plans import MixedPlan, SeveralQuestionsPlan
from introspection_lit.trials.interventions import clean_trial, dithered, make_intervention
from introspection_lit.trials.plans import Plan
from introspection_lit.trials.test_sets import Source
from introspection_lit.trials.trial import IN_EXCHANGES, IN_LINES, Trial
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Split:
    """The plan and the texts of a split; the only place where the indices of a trial become texts and tensors.

    Attributes:
        name: Name of the split.
        plan: Maps a trial's number to its content.
        contexts: Its contexts.
        questions: Its questions.
        tokenizer: The model's tokenizer.
        phrasing: System prompt, answer words, answer prefix and information before the question.
        answer_ids: Token ids of yes ("steered") and no.
        strength_unit: ``relative`` or ``absolute`` (see :func:`~introspection_lit.steering.bands.layer_scale`).
        source: Where vectors, contexts and questions come from. With the training questions, a context that has a question
            of its own is asked that one.
        roles: The role of each question in reports; empty if all ask about steering.
        total: Number of trials; None: unlimited.
        seed: The experiment's seed, for random labels and positions.
        control: Deliberate corruption for control runs: ``random_labels``, ``no_steering`` or ``none``.
        joined_from: Contexts that some of ``contexts`` are joined from.
        questionnaire: Several questions for each cache, instead of ``questions``; None: one.
        texts: Plain texts for each pair, in training; 0: none.
        text_weight: Factor of their mean loss.
        same_passes: Every batch has a reference and a text, if need be one that counts nothing: several processes must make
            the same forward passes.
        dither: Strength at which clean caches are steered (see :func:`~introspection_lit.trials.interventions.dithered`).
        share_question_prefix: Tokens that all questions of a batch begin with are read once for each cache. For grids,
            which ask each cache many questions. It takes another forward pass, so FSDP cannot use it.
    """

    name: str
    plan: Plan
    contexts: Sequence[Context]
    questions: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    phrasing: Phrasing
    answer_ids: tuple[int, int]
    strength_unit: str
    source: Source
    roles: Sequence[str] = ()
    total: int | None = None
    seed: int = 0
    control: str = "none"
    share_question_prefix: bool = False
    joined_from: Sequence[Context] = ()
    questionnaire: Questionnaire | None = None
    texts: float = 0.0
    text_weight: float = 1.0
    same_passes: bool = False
    dither: float = 0.0
    _encoded: dict[tuple[int, int], Encoded] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)

    def messages(self) -> dict[str, str]:
        """The user messages of each context as one text, by fingerprint; also of those that are joined into others."""
        texts = (without_signal(context.user) for context in (*self.contexts, *self.joined_from))
        return {fingerprint(text): text for text in texts}

    def single_question(self) -> Split:
        """The same contexts and directions in pairs of a clean and a steered cache, asked the first of ``questions``."""
        if self.questionnaire is None:
            return self
        assert isinstance(self.plan, SeveralQuestionsPlan)
        pairs = self.plan.pairs.pairs if isinstance(self.plan.pairs, MixedPlan) else self.plan.pairs
        return replace(self, plan=pairs, questionnaire=None, texts=0.0, _encoded={}, _lengths=[])

    def query(self, trial: Trial) -> Query:
        """The question of a trial with its answer words, its right answer and its weight in the loss."""
        if self.questionnaire is not None:
            pair, second = divmod(self._cache_number(trial), 2)
            return self.questionnaire.query(pair, trial.question, self._truth(trial, pair, bool(second)))
        words = AnswerWords(self.phrasing.answers, self.answer_ids, self.phrasing.joint)
        role = self.roles[trial.question] if self.roles else DETECTION
        return Query(role, self.question_text(trial), words, int(not self._label(trial)))

    def _truth(self, trial: Trial, pair: int, second: bool) -> Truth:
        assert isinstance(self.plan, SeveralQuestionsPlan)
        both = [self.plan.pairs.trial(2 * pair + cache) for cache in (0, 1)]
        places = [one.parts.index(max(one.parts)) if one.parts else 0 for one in both]
        concepts = [one.vector for one in both]
        return Truth(self._label(trial), (places[0], places[1]), (concepts[0], concepts[1]), second)

    def encoded_trial(self, trial: Trial) -> Encoded:
        """Tokens of a trial's conversation."""
        if self.questionnaire is None:
            return self.encoded(trial.context, trial.question)
        query = self.query(trial)
        phrasing = replace(self.phrasing, joint=query.answers.joint)
        return encode(self.tokenizer, self.contexts[trial.context], query.text, phrasing, query.asked)

    def question(self, context: int, question: int) -> str | None:
        """The configured question for a context and question index; None if the context's own question is asked."""
        detection = not self.roles or self.roles[question] == self.roles[0]
        own = self.source.questions == "train" and detection and self.contexts[context].question_turns
        return None if own else self.questions[question]

    def encoded(self, context: int, question: int = 0) -> Encoded:
        """Tokens of a conversation, by the indices of context and question; cached."""
        key = (context, question)
        if key not in self._encoded:
            text = self.question(context, question)
            self._encoded[key] = encode(self.tokenizer, self.contexts[context], text, self.phrasing)
        return self._encoded[key]

    def lengths(self) -> list[int]:
        """Number of tokens of each context."""
        if not self._lengths:
            self._lengths = [len(self.encoded(context).context_ids) for context in range(len(self.contexts))]
        return self._lengths

    def question_text(self, trial: Trial) -> str:
        """The text of a trial's question."""
        if self.questionnaire is not None:
            return self.query(trial).text
        question = self.question(trial.context, trial.question) or self.contexts[trial.context].question
        assert question is not None
        return question

    def question_texts(self) -> list[str]:
        """The texts of all questions that trials of the split may ask; of a questionnaire, with the answers yes and no."""
        if self.questionnaire is not None:
            return self.questionnaire.texts()
        trained = self.source.questions == "train"
        own = [context.question for context in self.contexts if trained and context.question is not None]
        return list(dict.fromkeys([*own, *(self.questions if len(own) < len(self.contexts) else ())]))

    def describe(self, trial: Trial, bank: VectorBank) -> dict[str, Any]:
        """A row of the predictions: the fields of the trial, and its texts and names."""
        context = self.contexts[trial.context]
        names: dict[str, Any] = {
            "context_key": context.key,
            "kind": context.kind,
            "question_text": self.question_text(trial),
            "role": self.roles[trial.question] if self.roles else self.query(trial).task,
            "vectors": trial.vectors or self.source.vectors,
            "vector_name": bank.names[trial.vectors or self.source.vectors][trial.vector] if trial.vector >= 0 else None,
        }
        if self.source.long:
            names |= {"tokens": self.lengths()[trial.context], "exchanges": exchanges_of(context)}
        query = self.query(trial)
        choice = {"answers": list(query.meanings), "right": query.target} if query.meanings else {}
        return trial.as_row() | names | choice

    def collate(self, trials: list[Trial], bank: VectorBank) -> TrialBatch:
        """Make the tensors of a batch; trials with the same context and intervention share a cache.

        Args:
            trials: Trials of this split, one for each row.
            bank: Directions and residual norms.
        """
        encoded, queries = [self.encoded_trial(trial) for trial in trials], [self.query(trial) for trial in trials]
        learns = self.name in ("train", "validation")  # tests only compare scores
        pairs = zip(trials, queries, strict=True)
        clean = [clean_trial(trial) for trial, query in pairs if learns and query.target is None]
        partners = {self._cache_key(trial): self._partner(trial) for trial in trials if trial.change == SPLICED}
        tokens = {self._cache_key(trial): row.context_ids for trial, row in reversed([*zip(trials, encoded, strict=True)])}
        first: dict[tuple[Any, ...], Trial] = {}  # a trial of each cache; references read clean ones
        for trial in (*trials, *clean, *partners.values()):
            first.setdefault(self._cache_key(trial), trial)
        cache_trials = list(first.values())
        place = {key: number for number, key in enumerate(first)}
        own = [place[self._cache_key(trial)] for trial in trials]
        cache_of = None if own == list(range(len(first))) else torch.tensor(own)
        questions = [row.question_ids for row in encoded]
        # The information before a grid's questions can be long: without sharing, every question would read it again.
        shared = self.share_question_prefix and cache_of is not None
        prefix = min(len(commonprefix(questions)), min(map(len, questions)) - 1) if shared else 0
        context_ids, context_mask = pad(
            [tokens.get(key) or self.encoded(trial.context).context_ids for key, trial in first.items()],
            self._pad_token,
            "left",
        )
        context_ids, context_mask = as_wide_as_needed(context_ids, context_mask, self._pad_token, cache_trials)
        question_ids, question_mask = pad([question[prefix:] for question in questions], self._pad_token, "right")
        intervention = make_intervention(
            [self._added(trial) for trial in cache_trials],
            context_mask,
            bank,
            self.source,
            self.strength_unit,
            self.part_spans,
            self.seed,
        )
        return TrialBatch(
            trials=trials,
            context_ids=context_ids,
            context_mask=context_mask,
            contexts=[trial.context for trial in cache_trials],
            cache_of=cache_of,
            question_prefix_ids=torch.tensor(questions[0][:prefix]) if prefix else None,
            question_ids=question_ids,
            question_mask=question_mask,
            intervention=intervention,
            labels=torch.tensor([self._positive(trial, query) for trial, query in zip(trials, queries, strict=True)]),
            inputs=torch.tensor([self._input_number(trial) for trial in trials]),
            numbers=torch.tensor([trial.number for trial in trials]),
            kinds=torch.tensor([int(fingerprint(self.contexts[trial.context].kind)[:15], 16) for trial in trials]),
            answer_ids=pad([query.answers.ids for query in queries], -1, "right")[0],
            targets=torch.tensor([-1 if query.target is None else query.target for query in queries]),
            tasks=[query.task for query in queries],
            all_tasks=() if self.questionnaire is None else tuple(part.task for part in self.questionnaire.parts),
            weights=self._weights(queries),
            references=self._references(trials, queries, encoded, place) if learns else None,
            early=self._early(queries, encoded),
            texts=self._texts(cache_trials[: len(set(own))], len(trials)),
            has_texts=bool(self.texts),
            total=self.total,
            changes=cache_changes(
                cache_trials,
                [self._pair(trial) for trial in cache_trials],
                [place[self._cache_key(partners[key])] if key in partners else -1 for key in first],
                self.seed,
            ),
        )

    def _added(self, trial: Trial) -> Trial:
        """The trial whose intervention the cache of a trial has."""
        return dithered(clean_trial(trial) if self.control == "no_steering" else trial, self.dither, self.plan, self.seed)

    def _weights(self, queries: list[Query]) -> Tensor | None:
        """Factors of the rows' losses in the loss of their batch, ``(batch,)``: each task's mean times its weight."""
        if self.questionnaire is None:
            return None
        return torch.tensor([query.weight for query in queries]) * self.questionnaire.each / len(queries)

    @property
    def _pad_token(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def _references(
        self, trials: list[Trial], queries: list[Query], encoded: list[Encoded], place: dict[tuple[Any, ...], int]
    ) -> References | None:
        """The distinct questions that the untrained model answers from clean caches; None if there are none."""
        keys = [
            (place[self._cache_key(clean_trial(trial))], tuple(row.question_ids), row.mark)
            if query.target is None
            else None
            for trial, query, row in zip(trials, queries, encoded, strict=True)
        ]
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        if not distinct and self.same_passes and self.questionnaire is not None and self.questionnaire.references:
            distinct = [(0, tuple(encoded[0].question_ids), -1)]  # counts nothing
        if not distinct:
            return None
        number = {key: index for index, key in enumerate(distinct)}
        ids, mask = pad([tokens for _, tokens, _ in distinct], self._pad_token, "right")
        rows = torch.tensor([-1 if key is None else number[key] for key in keys])
        caches, marks = ([key[number] for key in distinct] for number in (0, 2))
        return References(torch.tensor(caches), ids, mask, rows, torch.tensor(marks))

    def _early(self, queries: list[Query], encoded: list[Encoded]) -> EarlyAnswers | None:
        """What the rows of a training batch should predict at the question mark; None: nothing."""
        if self.questionnaire is None or self.questionnaire.plain is None:
            return None
        marks = [row.mark if row.mark >= 0 else len(row.question_ids) - 1 for row in encoded]
        tokens, factors = [query.plain for query in queries], [query.early for query in queries]
        return EarlyAnswers(torch.tensor(marks), torch.tensor(tokens), torch.tensor(factors))

    def _texts(self, cache_trials: list[Trial], rows: int) -> Texts | None:
        """The clean contexts of a batch that serve as plain texts; None: there are none."""
        if not self.texts:
            return None
        assert self.questionnaire is not None
        kinds, drawn = self.questionnaire.kinds, []
        for place, trial in enumerate(cache_trials):
            cache = self._cache_number(trial)
            if not trial.steered and kinds.of(cache // 2) not in TASK_OF:
                drawn += [place] * (generator(self.seed, "text", self.name, cache).random() < self.texts)
        # Of all pairs of the step, not of this part's: its clean caches may be fewer than its share.
        expected = self.texts * rows / (2 * self.questionnaire.each) * kinds.share(None)
        if not drawn and not self.same_passes:
            return None
        weights = [self.text_weight / expected] * len(drawn) if drawn else [0.0]
        return Texts(torch.tensor(drawn or [0]), torch.tensor(weights))

    def _cache_key(self, trial: Trial) -> tuple[Any, ...]:
        """Equal for trials with equal caches."""
        random_positions = trial.number if trial.steered and self.source.positions < 1 else None
        changed = (trial.change, self._pair(trial)) if trial.change else None  # noise differs from pair to pair
        return (trial.context, *trial[5:-1], random_positions, changed)  # all that follows the label, the change last

    def _partner(self, trial: Trial) -> Trial:
        return partner_of(trial, self._pair(trial), self.lengths()[: self.plan.contexts], self.seed)

    def _pair(self, trial: Trial) -> int:
        return self._cache_number(trial) // 2

    def part_spans(self, trial: Trial) -> list[tuple[int, int]]:
        """The tokens, (first, one after the last), of the parts of a trial's context: lines, exchanges or equal parts."""
        if trial.divided:
            spans = {IN_LINES: line_spans, IN_EXCHANGES: exchange_spans}[trial.divided]
            return spans(self.tokenizer, self.contexts[trial.context], self.questions[0], self.phrasing)
        length, parts = len(self.encoded(trial.context).context_ids), len(trial.parts)
        return [(length * part // parts, length * (part + 1) // parts) for part in range(parts)]

    def _positive(self, trial: Trial, query: Query) -> bool:
        """Whether a score above 0 is right: the trial is steered; of two answers, the first is right; of more, always."""
        if not query.meanings:
            return self._label(trial)
        return query.target == 0 or len(query.meanings) > 2

    def _label(self, trial: Trial) -> bool:
        if self.control != "random_labels":
            return trial.steered
        return bool(generator(self.seed, "label", self.name, self._cache_number(trial)).integers(2))

    def _cache_number(self, trial: Trial) -> int:
        """Number of a trial's cache in the split; with a single question, the trial's own."""
        return trial.number // (self.questionnaire.each if self.questionnaire is not None else 1)

    def _input_number(self, trial: Trial) -> int:
        context = self.contexts[trial.context]
        own = self.questionnaire is None and self.question(trial.context, trial.question) is None
        texts = (context.key, "" if own else self.question_text(trial), *([trial.change] if trial.change else []))
        return int(fingerprint(*texts)[:15], 16)
