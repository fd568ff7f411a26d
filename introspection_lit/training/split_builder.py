"""Builds the splits of a run (training, validation, test sets) or the parts of its grid, once all options are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.contexts.context import Context
from introspection_lit.contexts.conversations import YES_NO
from introspection_lit.contexts.long_conversations import exchanges_of, is_joined, long_contexts
from introspection_lit.contexts.splits import SIGNALS, evenly_spaced, line_contexts, merged_contexts, visible_signals
from introspection_lit.contexts.usable import control_token_problems, usable_contexts
from introspection_lit.steering.bands import Bands
from introspection_lit.steering.vector_bank import RANDOM_SPLITS, VectorBank
from introspection_lit.tasks.answer_tokens import first_tokens
from introspection_lit.tasks.questionnaire import (
    CONCEPTS,
    IN_LINES,
    KIND_OF,
    LINES,
    PLAIN_TEXT,
    STEERING,
    VISIBLE,
    WORDS_OF,
    PairKinds,
    PlainAnswers,
    Questionnaire,
    part_of_test_set,
    training_kinds,
    training_parts,
)
from introspection_lit.tasks.questions import FALSE_QUESTIONS, TRUE_QUESTIONS, builtin_questions, info_text
from introspection_lit.tasks.task import AnswerWords
from introspection_lit.tasks.task_questions import NOTHING
from introspection_lit.tasks.wording import Wording, longest_question, window_problems
from introspection_lit.training.changed_caches import deployed_split, with_benign_changes
from introspection_lit.training.long_options import SHORTEST
from introspection_lit.training.options import DEFAULT_VECTORS, DataOptions
from introspection_lit.trials.changed_plans import DeployedPlan
from introspection_lit.trials.composed_plans import ExchangesPlan, MixedPlan, SeveralQuestionsPlan
from introspection_lit.trials.grid import CLEAR_NO, CLEAR_YES, GridPlan, split_name
from introspection_lit.trials.plans import OncePlan, TrialPlan
from introspection_lit.trials.split import Split
from introspection_lit.trials.test_sets import QUESTIONNAIRES, SOURCES, Source
from introspection_lit.utils.errors import ConfigurationError, Problems

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Contexts of a grid, if data.grid.contexts does not say and they are not the user's own.
DEFAULT_CONTEXTS = 8


class BandSets(NamedTuple):
    """Steered bands as layer numbers: of training and validation, of the test sets, and of the grid."""

    training: Bands
    tests: Bands
    grid: Bands


def concept_names(options: DataOptions, bank: VectorBank | None) -> dict[str, list[str]]:
    """Names of the concepts that are tested and trained on; without a bank, of the one that will be measured."""
    made = {"concept": options.concepts, "concept_train": options.concepts_to_train}
    return made if bank is None else {split: bank.names.get(split, []) for split in made}


def vector_counts(options: DataOptions, bank: VectorBank | None) -> dict[str, int]:
    """Directions of each split of the vector bank that are used; without a bank, of the one that will be measured."""
    if bank is None:
        counts = {split: count or DEFAULT_VECTORS[split] for split, count in options.vector_counts.items()}
        return counts | dict.fromkeys(("concept", "concept_pca"), len(options.concepts))
    limits = {split: options.vector_counts.get(split) for split in bank.directions}
    return {split: min(limits[split] or len(rows), len(rows)) for split, rows in bank.directions.items()}


@dataclass(frozen=True)
class SplitBuilder:
    """Builds splits from checked parts.

    Attributes:
        options: The options of the data.
        contexts: Usable contexts by context split; ``all`` for a grid.
        vectors: Directions by vector split (:func:`vector_counts`).
        concepts: Names of the concepts, by vector split.
        wording: Questions and answers.
        bands: Steered bands.
        joinable: Contexts that long conversations are joined from, by context split.
        several_processes: More than one process trains.
    """

    options: DataOptions
    contexts: dict[str, list[Context]]
    vectors: dict[str, int]
    concepts: dict[str, list[str]]
    wording: Wording
    bands: BandSets
    joinable: dict[str, list[Context]]
    several_processes: bool = False

    def split(self, name: str) -> Split:
        """Training, validation or a test set; validation draws bands and strengths as training: it sets the threshold."""
        options, words, source = self.options, self.wording, SOURCES[name]
        is_test, trials = name in options.test_sets, options.trial_counts[name]
        questionnaire = self._questionnaire(name, source)
        single, more = self._contexts(name, source, questionnaire)
        contexts = [*single, *self._merged(name, single)]
        questions = words.questions.get(source.questions, words.questions["train"])
        bands = self.bands.tests if is_test else self.bands.training
        drawn_from = (options.seed, name, len(contexts), len(questions), self.vectors[source.vectors], bands)
        strengths = options.strengths_of_tests if is_test else options.strengths
        if source.strength:
            strengths = (source.strength, source.strength)
        variants = list[Context]()
        plan: TrialPlan | ExchangesPlan | MixedPlan | OncePlan | SeveralQuestionsPlan | DeployedPlan
        if source.changed:
            plan, contexts = deployed_split(options, name, contexts, words, drawn_from[3:5], bands)
        elif source.doses:
            doses = tuple(options.test_doses)
            plan = OncePlan(*drawn_from, (min(doses), max(doses)), trials, doses)
        elif is_test and options.test_clean == "once" and questionnaire is None and not source.long:
            plan = OncePlan(*drawn_from, strengths, trials)
        else:
            plan = TrialPlan(*drawn_from, (options.long_options.test_strength,) * 2 if source.long else strengths)
            if name == "train":
                begun = options.curriculum and options.curriculum.for_caches(questionnaire.each if questionnaire else 1)
                plan = replace(plan, curriculum=begun, both_signs=options.both_signs, single=len(single))
            kinds = None if questionnaire is None else questionnaire.kinds
            if not is_test and (kinds is None or VISIBLE not in kinds.kinds):
                plan, contexts, variants = with_benign_changes(options, plan, contexts, words, kinds, len(more))
            if source.long or (options.trains_long and not is_test):
                plan = ExchangesPlan(plan, tuple(map(exchanges_of, [*contexts, *more, *variants])))
        if questionnaire is not None:
            assert isinstance(plan, TrialPlan | ExchangesPlan)
            kinds = questionnaire.kinds
            if set(kinds.kinds) != {STEERING}:
                concepts = "" if is_test else "concept_train"
                plan = MixedPlan(plan, kinds, len(more), len(questionnaire.concepts), concepts)
            plan = SeveralQuestionsPlan(plan, questionnaire.each)
        phrasing, answer_ids = words.phrasing, words.answer_ids
        if source.questions == "swapped":
            phrasing, answer_ids = replace(phrasing, answers=phrasing.answers[::-1]), answer_ids[::-1]
        texts = (options.tasks or {}).get(PLAIN_TEXT) if name in ("train", "validation") else None
        factual = [CLEAR_YES] * len(TRUE_QUESTIONS) + [CLEAR_NO] * len(FALSE_QUESTIONS)
        return Split(
            name,
            plan,
            [*contexts, *more, *variants],
            questions,
            words.tokenizer,
            phrasing,
            answer_ids,
            options.strength_unit,
            source,
            roles=factual if source.questions == "factual" else (),
            total=None if name == "train" else trials,
            seed=options.seed,
            control=options.control if name == "train" else "none",
            joined_from=self.joinable.get(source.contexts, ()) if any(map(is_joined, contexts)) else (),
            questionnaire=questionnaire,
            texts=texts.questions if texts else 0.0,
            text_weight=texts.weight if texts else 1.0,
            same_passes=self.several_processes,
            dither=options.dither if name == "train" else 0.0,
        )

    def _contexts(self, name: str, source: Source, asked: Questionnaire | None) -> tuple[list[Context], list[Context]]:
        """The contexts that a split draws from, but for the merged ones, and those of pairs of caches of their own."""
        contexts, kinds = self.contexts[source.contexts], asked.kinds.kinds if asked is not None else ()
        if source.long:
            return self._joined(name, source), []
        if VISIBLE in kinds:
            return self._visible_contexts(contexts)
        more = self._line_contexts(name, contexts) if IN_LINES in kinds else []
        if self.options.trains_long and name in ("train", "validation"):
            contexts = [*contexts, *self._joined(name, source)]
        return contexts, more

    def _merged(self, name: str, contexts: list[Context]) -> list[Context]:
        """Contexts of two, as many as make up the share of ``data.merged``, or all that are short enough."""
        share = self.options.merged
        if not share or name not in ("train", "validation") or self.options.control == "visible":
            return []
        made = self._usable(merged_contexts(contexts, self.options.seed, name))
        if not made:
            limit = f"data.max_context_tokens ({self.options.max_context_tokens})"
            found = f"data.merged: got {share}, but no two {name} contexts of a kind fit into {limit}"
            raise ConfigurationError([f"{found}. Raise it, or leave data.merged out."])
        return evenly_spaced(made, round(share / (1 - share) * len(contexts)))

    def _joined(self, name: str, source: Source) -> list[Context]:
        """Long conversations: a context for each pair of a test set, or a share of the contexts of training."""
        long, words = self.options.long_options, self.wording
        if source.long:
            classes = [(max(low, SHORTEST), high) for low, high in long.classes()]
            pairs = self.options.trial_counts[name] // 2
            ranges = [classes[pair % len(classes)] for pair in range(pairs)]
        else:
            count = round(long.share / (1 - long.share) * len(self.contexts[source.contexts]))
            ranges = [long.tokens if name == "train" else long.tokens_of_validation] * max(1, count)
        return long_contexts(
            words.tokenizer,
            words.phrasing,
            words.questions["train"][0],
            self.joinable[source.contexts],
            ranges,
            long.exchanges,
            self.options.seed,
            name,
            unseen=source.contexts == "newkinds",
            test=source.long,
        )

    def _questionnaire(self, name: str, source: Source) -> Questionnaire | None:
        """The questions of a split whose caches are asked several; None: one question each."""
        options, words = self.options, self.wording
        if source.questions in QUESTIONNAIRES:
            parts, pairs = (
                [part_of_test_set(source.questions)],
                words.answer_words[WORDS_OF.get(source.questions, "trained")],
            )
            kinds: tuple[str, ...] = (KIND_OF.get(source.questions, STEERING),)
        elif options.tasks and name in ("train", "validation"):
            parts, pairs = [*training_parts(options.tasks)], words.answer_words["trained"]
            # Controls train on pairs of a clean and a steered cache alone: there they say what is right.
            controls = {VISIBLE: (VISIBLE,), "none": training_kinds(options.tasks)}
            kinds = controls.get(options.control, (STEERING,))
        else:
            return None
        many = {IN_LINES, CONCEPTS} & set(kinds)
        if not pairs or (many and not any(series.words[0].isdigit() for series in words.answer_words["series"])):
            where = f"data.test_trials: {name!r}" if name in options.test_sets else "data.tasks"
            expected = "Expected answer words that are one token each for this model (pairs, digits); it has none of ours"
            raise ConfigurationError([f"{where}: cannot be asked. {expected}."])
        concepts = tuple(self.concepts["concept" if name in options.test_sets else "concept_train"])
        concepts = concepts if CONCEPTS in kinds else ()
        return Questionnaire(
            options.seed,
            name,
            tuple(parts),
            pairs,
            options.lead_in_text,
            PairKinds(options.seed, name, kinds),
            words.answer_words["series"],
            concepts,
            self._names(concepts) if concepts else None,
            self._plain_answers(concepts) if name == "train" and any(part.early for part in parts) else None,
        )

    def _names(self, concepts: Sequence[str]) -> AnswerWords | None:
        """Concepts and "nothing" as answers."""
        words = self.wording
        return first_tokens(words.tokenizer, words.questions["train"][0], words.phrasing, (*concepts, NOTHING))

    def _plain_answers(self, concepts: Sequence[str]) -> PlainAnswers:
        """The first token, white space apart, of each answer in plain words after a question mark."""
        tokenizer = self.wording.tokenizer

        def first_token(word: str) -> int:
            before = len(tokenizer("Was it?", add_special_tokens=False)["input_ids"])
            tokens = tokenizer(f"Was it? {word}", add_special_tokens=False)["input_ids"][before:]
            has_space = len(tokens) > 1 and not tokenizer.decode(tokens[:1]).strip()  # before digits, in some
            return int(tokens[has_space])

        lines = [str(number) for number in range(1, LINES + 1)]
        words = (YES_NO, ("first", "second"), lines, (*concepts, NOTHING))
        return PlainAnswers(*(tuple(map(first_token, group)) for group in words))

    def _visible_contexts(self, contexts: list[Context]) -> tuple[list[Context], list[Context]]:
        """Contexts without and with a visible signal, of which both are short enough."""
        pairs = [
            pair
            for pair in zip(*(visible_signals(contexts, signal) for signal in SIGNALS), strict=True)
            if len(self._usable(pair)) == len(pair)
        ]
        return [without for without, _ in pairs], [signal for _, signal in pairs]

    def _usable(self, made: Sequence[Context]) -> list[Context]:
        """Those of contexts made of others that are short enough and open no turns."""
        words = self.wording
        question = words.questions["train"][0]
        return usable_contexts(words.tokenizer, made, question, words.phrasing, self.options.max_context_tokens)

    def _line_contexts(self, name: str, contexts: list[Context]) -> list[Context]:
        """Contexts of numbered lines that are made of others; those that are short enough."""
        usable = self._usable(line_contexts(contexts, self.options.seed, name, LINES))
        if not usable:
            expected = f"Expected at least {LINES} contexts of one short line, and room for {LINES} lines"
            problem = f"{name}: no context of numbered lines can be made. {expected} in data.max_context_tokens"
            raise ConfigurationError(
                [f"data.contexts: {problem}, or leave out the task localisation and the test set lines."]
            )
        return usable

    def grid(self, config: PretrainedConfig, share_question_prefix: bool) -> dict[str, Split]:
        """A split for each text before the question and each kind of vector of ``data.grid``.

        Args:
            config: The model's configuration: its window must hold the longest question.
            share_question_prefix: Read the common start of the questions once for each cache.

        Raises:
            ConfigurationError: The grid asks for more than there is, or a question cannot be asked.
        """
        options, words, problems = self.options, self.wording, Problems()
        grid, contexts = options.grid, self.contexts["all"]
        assert grid is not None
        if grid.contexts is not None and grid.contexts > len(contexts):
            problems.add([f"data.grid.contexts: {grid.contexts} asked for, but there are {len(contexts)}."])
        if "heldout" in grid.vectors and grid.random_vectors > self.vectors["heldout"]:
            available = f"but there are {self.vectors['heldout']} held out"
            problems.add([f"data.grid.random_vectors: {grid.random_vectors} asked for, {available}."])
        controls = builtin_questions([*grid.true_questions, *grid.false_questions], words.phrasing.answers)
        questions = [*words.questions["train"], *controls]
        problems.add(
            control_token_problems(words.tokenizer, controls, "data.grid.true_questions, data.grid.false_questions")
        )
        problems.raise_if_any()
        users_own = any(context.question_turns for context in contexts)
        contexts = evenly_spaced(contexts, grid.contexts or (len(contexts) if users_own else DEFAULT_CONTEXTS))
        splits = {}
        for info in grid.info:
            text = problems.attempt(info_text, info, words.tokenizer) or ""
            problems.add(control_token_problems(words.tokenizer, [text], "data.grid.info"))
            phrasing = replace(words.phrasing, info=text)
            longest = longest_question(words.tokenizer, questions, phrasing)
            problems.add(window_problems(options.max_context_tokens, longest, config))
            for vectors in grid.vectors:
                count = self.vectors[vectors]
                count = min(grid.random_vectors, count) if vectors in RANDOM_SPLITS else count
                name, sizes = split_name(info, vectors), (len(contexts), len(questions), count)
                plan = GridPlan(name, *sizes, self.bands.grid, tuple(grid.strengths))
                splits[name] = Split(
                    name,
                    plan,
                    contexts,
                    questions,
                    words.tokenizer,
                    phrasing,
                    words.answer_ids,
                    options.strength_unit,
                    Source(vectors, "all"),
                    roles=grid.roles(len(words.questions["train"])),
                    total=plan.total,
                    share_question_prefix=share_question_prefix,
                )
        problems.raise_if_any()
        return splits
