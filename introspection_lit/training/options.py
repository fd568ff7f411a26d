"""The options of the data (``--data.NAME``), and every check that needs nothing but these options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from introspection_lit.contexts.context import BUILTIN, LARGE
from introspection_lit.contexts.generation.sources import NEW
from introspection_lit.steering.change_names import CHANGES
from introspection_lit.steering.extraction import CONCEPTS
from introspection_lit.tasks.questionnaire import IDENTIFICATION, OWN_CACHES, training_parts
from introspection_lit.tasks.task import LEAD_IN, TaskOptions
from introspection_lit.tasks.task_questions import TRAINED_CONCEPTS
from introspection_lit.training.long_options import LongOptions
from introspection_lit.trials.curriculum import Curriculum
from introspection_lit.trials.grid import Grid
from introspection_lit.trials.test_sets import DEFAULT_TEST_SETS, LONG_SETS, OF_NEW_KINDS
from introspection_lit.utils.paths import parse_path

# Trials in a training batch of one process, if neither data.batch_size nor data.effective_batch says otherwise.
DEFAULT_BATCH_SIZE = 16
# Random directions of a bank that is measured on the model, by split.
DEFAULT_VECTORS = {"train": 100, "validation": 50, "heldout": 100}
# Kinds of the built-in contexts that only validation (which sets the threshold) and only the test set newkinds see.
VALIDATION_KINDS = ("csv", "dutch", "java", "reviews")
TEST_KINDS = ("capitals", "italian", "japanese", "latex", "logs", "rust", "turkish", "typos")
# Defaults of data.validation_kinds and data.test_kinds, by data.contexts; none for contexts of the user's own.
HELD_OUT_KINDS = {BUILTIN: (VALIDATION_KINDS, TEST_KINDS), LARGE: (VALIDATION_KINDS, (*TEST_KINDS, *NEW))}
PACKAGED_KINDS = {*VALIDATION_KINDS, *TEST_KINDS, *NEW}
# Doubling from far below to well inside what a detector can notice.
DOSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)


@dataclass(frozen=True)
class Reuse:
    """What of the prefill is computed once instead of again and again. Scores stay the same but for rounding.

    Attributes:
        layers: Of rows with the same context, one runs through the layers below the steering, for all of them.
        clean: In training, keep the caches of clean contexts in host memory, if the run needs each at least twice. Off if
            the adapter writes caches (``data.prefill_adapter``), since these change with every step.
        gib: Host memory for kept caches, of each process, in GiB; contexts that do not fit are computed each time.
        group: Contexts that are read at once to be kept.
    """

    layers: bool = True
    clean: bool = True
    gib: float = 8.0
    group: int = 16

    def problems(self) -> list[str]:
        """Errors in the settings."""
        if self.gib >= 0 and self.group >= 1:
            return []
        return [f"data.reuse: got gib {self.gib} and group {self.group}. Expected gib >= 0 and group >= 1."]


@dataclass(frozen=True)
class DataOptions:
    """Options of :class:`~introspection_lit.training.datamodule.IntrospectionDataModule`, as they are typed.

    Attributes:
        contexts: ``builtin``, ``large`` (the same and 320 of each unseen kind, made on first use: docs/contexts.md), a
            ``.jsonl`` or ``.json`` file, or ``hub:NAME`` (see :func:`~introspection_lit.contexts.loading.load_contexts`).
        test_contexts: The same; all of it is what every test set uses, instead of its share of ``contexts``.
        validation_kinds: Kinds of context that only validation sees. Default: four kinds of the built-in contexts.
        test_kinds: Kinds that only the test set ``newkinds`` sees. Default: eight kinds of the built-in contexts;
            of ``large`` six more.
        max_context_tokens: Longer contexts are left out.
        merged: Share of training and validation contexts that are two of a kind in one, for more of the long ones.
        long: Longer conversations of several exchanges, in training, validation and the test sets ``long`` and
            ``long_newkinds``. By default all contexts are single exchanges.
        system_prompt: The system prompt; empty by default, which is not the same as the template's default.
        questions: What is asked in training and in most tests; ``{yes}`` and ``{no}`` stand for the answers. By default one
            question of ours, which explains the answers if they are not yes and no.
        heldout_questions: What only the test set ``newquestions`` asks. By default four of ours.
        info: What is said before every question: ``none``, ``explained`` (how a model could notice), ``neutral`` (a text
            about something else, as long), or a ``.txt`` file.
        answers: The words for "steered" and "not steered", each one token; yes and no by default, or what a conversation
            file says. Quote them in YAML: a bare ``no`` is "false".
        answer_prefix: How the answer starts, without a space at the end; by default "The answer is", or as the
            conversations of a file start theirs.
        chat_template: A file with a chat template (Jinja) instead of the model's own: for base models, which have none, and
            for templates that lose a message. It is copied into the exported adapter.
        thinking: Where an answer starts if the chat template has blocks of thoughts: after one, which is ``closed`` in the
            template's own way, or ``open``, right after the generation prompt.
        tasks: What each cache is asked in training, by name: ``detection`` (was it steered, in answer words that change
            from question to question), ``factual`` and ``reading`` (questions about the world and the text, whose answers
            must stay those of the untrained model over the clean cache), ``plain_text`` (predictions of the text itself,
            which must stay the same), and, over caches of their own, ``localisation`` (which half or line was steered),
            ``comparison`` (which half more strongly) and ``identification`` (which of ten concepts was added). Each has a
            ``weight``, and a number of ``questions`` for each cache or of ``pairs`` of caches in 16. By default the single
            question of ``questions``.
        lead_in: First words of every question; by default "Introspection query:" with ``tasks``, else none.
        bank: A vector bank made for this model. By default one is made, and saved in the run's folder.
        manifest: Train on the trials of this file instead of drawing them, in its order but for neighbours that are sorted
            by length; an epoch is a pass over it. Needs ``bank``.
        grid: What ``predict`` runs through instead of the test sets: a benchmark (see scripts/baseline_benchmark.py).
        replay: Trials that ``predict`` scores instead of the test sets, each alone, saying where their numbers stop being
            finite: ``SPLIT:NUMBER``, such as ``train:12``, or a list of these.
        train_vectors: Random directions to train on; by default 100, or all that a given bank has.
        validation_vectors: Random directions to validate on; by default 50, or all of a given bank.
        heldout_vectors: Random directions to test on; by default 100, or all of a given bank.
        concepts: Words or phrases whose directions are extracted from the model.
        trained_concepts: Others, on which ``identification`` is trained; by default 74 of ours.
        bands: Decoder layers that are steered: ``early``, ``middle``, ``late`` (thirds), ``all``, or [first, last], both
            inclusive. One that is named twice is drawn twice as often.
        strengths: Lowest and highest strength; drawn log-uniformly between them.
        curriculum: Begin the training with other strengths, or without merged contexts. Default: none.
        both_signs: Training adds or subtracts each random direction: no linear rule for its directions detects them.
        dither: Strength, below ``strengths``, that clean training caches have, so that rounding does not tell them; 0: no.
        test_bands: The same for the test sets, if other than in training.
        test_strengths: The same for the test sets, if other than in training.
        test_doses: The strengths of the test sets ``doses`` and ``doses_concept``, each as often in each band.
        test_clean: Clean trials in the test sets: ``paired``, one for each steered trial with the same context, or
            ``once``, one for each context and question, however many are steered (so for doses in any case).
        test_changes: What the tests ``deployed`` and ``deployed_newkinds`` do to caches (docs/deployment.md); default: all.
        benign: Changes of caches that do no harm, such as ``int8``: a share of the pairs of training and validation have
            one of them, on the clean and the steered cache, so that changed caches are learned to be clean. Default: none.
        benign_share: Share of these pairs, 0 to 1.
        control: Train so that nothing can be learned: ``random_labels`` (a coin says what is right) or ``no_steering``
            (what is called steered is clean); tests show what the method itself brings about. Or, with ``tasks``,
            ``visible``: nothing is steered, and the text says whether there is a signal; tests show what following
            instructions alone brings. Controls leave out tasks with caches of their own.
        strength_unit: ``relative`` (to the layer's median residual norm, over the square root of the number of layers in
            the band) or ``absolute`` (the length added at each layer).
        seed: Decides splits, vectors and trials.
        batch_size: Trials in a training batch of one process; even. ``auto``: as many as fit, for steps of
            ``effective_batch`` trials.
        effective_batch: Trials in a step of the optimiser, over all processes and accumulated batches; how many batches
            that takes is then worked out. By default as many as come together; with ``auto``, 16 for each process.
        eval_batch_size: Trials in a validation or test batch of one process; even.
        trials_per_epoch: Trials between two validations, over all processes; rounded up to whole steps.
        validation_trials: Trials in validation.
        test_trials: Trials in each test set; the sets that are not named are left out.
        prefill_adapter: Leave the adapter on while caches are written.
        reuse: What of the prefill is computed once instead of again and again.
        num_workers: Worker processes of each data loader.

    Raises:
        ConfigurationError: ``bank``, ``manifest`` or ``chat_template`` is no file name.
    """

    contexts: str = BUILTIN
    test_contexts: str | None = None
    validation_kinds: list[str] | None = None
    test_kinds: list[str] | None = None
    max_context_tokens: int = 128
    merged: float = 0.0
    long: LongOptions | None = None
    system_prompt: str = ""
    questions: list[str] | None = None
    heldout_questions: list[str] | None = None
    info: str = "none"
    answers: tuple[str, str] | None = None
    answer_prefix: str | None = None
    chat_template: str | None = None
    thinking: Literal["closed", "open"] = "closed"
    tasks: dict[str, TaskOptions] | None = None
    lead_in: str | None = None
    bank: str | None = None
    manifest: str | None = None
    grid: Grid | None = None
    replay: str | list[str] | None = None
    train_vectors: int | None = None
    validation_vectors: int | None = None
    heldout_vectors: int | None = None
    concepts: list[str] = field(default_factory=lambda: list(CONCEPTS))
    trained_concepts: list[str] | None = None
    bands: list[str | list[int]] = field(default_factory=lambda: ["early", "middle", "late"])
    strengths: tuple[float, float] = (0.3, 2.0)
    curriculum: Curriculum | None = None
    both_signs: bool = False
    dither: float = 0.0
    test_bands: list[str | list[int]] | None = None
    test_strengths: tuple[float, float] | None = None
    test_doses: list[float] = field(default_factory=lambda: list(DOSES))
    test_clean: Literal["paired", "once"] = "paired"
    test_changes: list[str] | None = None
    benign: list[str] | None = None
    benign_share: float = 0.25
    control: Literal["none", "random_labels", "no_steering", "visible"] = "none"
    strength_unit: Literal["relative", "absolute"] = "relative"
    seed: int = 0
    batch_size: int | Literal["auto"] = DEFAULT_BATCH_SIZE
    effective_batch: int | None = None
    eval_batch_size: int = 32
    trials_per_epoch: int = 480
    validation_trials: int = 128
    test_trials: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DEFAULT_TEST_SETS, 256))
    prefill_adapter: bool = False
    reuse: Reuse = Reuse()
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Check the file names at once: everything else is checked by :meth:`problems`, all together."""
        _ = self.bank_path, self.manifest_path, self.template_path

    @property
    def bank_path(self) -> Path | None:
        """The file of the vector bank; None: the bank is measured on the model."""
        return None if self.bank is None else parse_path("data.bank", self.bank)

    @property
    def manifest_path(self) -> Path | None:
        """The file of the training trials; None: they are drawn."""
        return None if self.manifest is None else parse_path("data.manifest", self.manifest)

    @property
    def template_path(self) -> Path | None:
        """The file of the chat template; None: the model's own."""
        return None if self.chat_template is None else parse_path("data.chat_template", self.chat_template)

    @property
    def lead_in_text(self) -> str:
        """First words of every question; empty: none."""
        return (LEAD_IN if self.tasks else "") if self.lead_in is None else self.lead_in

    @property
    def long_options(self) -> LongOptions:
        """Settings of long conversations; without any, those of the test sets alone."""
        return LongOptions(share=0) if self.long is None else self.long

    @property
    def trains_long(self) -> bool:
        """Whether training and validation have joined conversations; with a manifest or visible signals they have none."""
        return self.long_options.share > 0 and self.control != "visible" and self.manifest is None

    @property
    def longest_trained(self) -> int:
        """Tokens of the longest context of training."""
        return max(self.max_context_tokens, self.long_options.tokens[1] if self.trains_long else 0)

    @property
    def longest_validated(self) -> int:
        """Tokens of the longest context of validation."""
        return max(self.max_context_tokens, self.long_options.tokens_of_validation[1] if self.trains_long else 0)

    @property
    def longest_tested(self) -> int:
        """Tokens of the longest context of the test sets."""
        long = set(LONG_SETS) & set(self.test_sets)
        return max(self.max_context_tokens, self.long_options.test_tokens[-1] if long else 0)

    @property
    def questions_of_cache(self) -> int:
        """Questions that each cache is asked in training and validation."""
        return sum(part.each for part in training_parts(self.tasks or {}) if part.task not in OWN_CACHES) or 1

    @property
    def concepts_to_train(self) -> list[str]:
        """The concepts that identification is trained on; empty: it is not trained."""
        trained = TRAINED_CONCEPTS if self.trained_concepts is None else self.trained_concepts
        return list(trained) if IDENTIFICATION in (self.tasks or {}) else []

    @property
    def held_out_kinds(self) -> tuple[list[str], list[str]]:
        """Kinds of context that only validation sees, and kinds that only the test set ``newkinds`` sees."""
        validation, test = HELD_OUT_KINDS.get(self.contexts, ((), ()))
        return (
            list(validation if self.validation_kinds is None else self.validation_kinds),
            list(test if self.test_kinds is None else self.test_kinds),
        )

    def for_own_contexts(self, kinds: Collection[str], tested: Collection[str] = ()) -> tuple[DataOptions, list[str]]:
        """The options for contexts of the user's own, and what was left out, a sentence each.

        Kinds of the packaged contexts that an experiment's configuration holds out are dropped if there are none; and test
        sets of unseen kinds, if there are no others to be tested.

        Args:
            kinds: The kinds of ``contexts``.
            tested: The kinds of ``test_contexts``.
        """
        if self.contexts in HELD_OUT_KINDS:
            return self, []
        options, notes, source, named = self, list[str](), Path(self.contexts).name, self.held_out_kinds
        if dropped := [kind for group in named for kind in group if kind in PACKAGED_KINDS and kind not in kinds]:
            kept = [[kind for kind in group if kind not in dropped] for group in named]
            options = replace(self, validation_kinds=kept[0], test_kinds=kept[1])
            examples = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
            notes.append(f"held-out kinds of the built-in contexts that {source} does not have: {examples}")
        asked = self.test_kinds is not None and not named[1]
        if not (asked or options.held_out_kinds[1] or set(tested) - set(kinds) or self.grid):
            trials = {name: n for name, n in self.test_trials.items() if name not in OF_NEW_KINDS}
            if without := [name for name in self.test_trials if name not in trials] if trials else []:
                options = replace(options, test_trials=trials)
                notes.append(f"the test sets {', '.join(without)}: no kind is held out of {source} (data.test_kinds)")
        return options, notes

    @property
    def vector_counts(self) -> dict[str, int | None]:
        """Random directions of each split; None: the default, or all of the bank's."""
        return {"train": self.train_vectors, "validation": self.validation_vectors, "heldout": self.heldout_vectors}

    @property
    def bands_of_tests(self) -> list[str | list[int]]:
        """Bands that the test sets are steered at."""
        return self.bands if self.test_bands is None else self.test_bands

    @property
    def strengths_of_tests(self) -> tuple[float, float]:
        """Lowest and highest strength of the test sets."""
        return self.test_strengths or self.strengths

    @property
    def changes_of_tests(self) -> list[str]:
        """Names of the changes of caches that are tested."""
        return list(CHANGES) if self.test_changes is None else self.test_changes

    @property
    def replayed(self) -> list[str] | None:
        """The trials that ``predict`` replays, ``SPLIT:NUMBER`` each; None: no replay."""
        return [self.replay] if isinstance(self.replay, str) else self.replay

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets, in order."""
        return list(self.test_trials)

    @property
    def trial_counts(self) -> dict[str, int]:
        """Trials by split: of an epoch of training, of validation, and of each test set."""
        return {"train": self.trials_per_epoch, "validation": self.validation_trials, **self.test_trials}

    def describe(self) -> dict[str, Any]:
        """The options that decide what is trained on and how it is asked, by name (``data.NAME``).

        A file is recorded by its name without its folder: readers must give it, or put it beside the description. Options
        left at their default are None.
        """
        source, info = Path(self.contexts).expanduser(), Path(self.info)
        recorded = (
            "contexts", "validation_kinds", "test_kinds", "max_context_tokens", "system_prompt", "questions",
            "heldout_questions", "info", "answers", "answer_prefix", "train_vectors", "bands", "strengths", "control",
            "strength_unit", "prefill_adapter", "seed",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in recorded}
        values["contexts"] = source.name if source.is_file() else self.contexts
        special: dict[str, Any] = {"lead_in": self.lead_in_text, "long": self.long and asdict(self.long)}
        special |= {name: getattr(self, name) for name in ("both_signs", "dither", "merged")}
        special["curriculum"] = self.curriculum and self.curriculum.describe()
        special["thinking"] = self.thinking if self.thinking != "closed" else None
        special["chat_template"] = self.template_path and self.template_path.name
        values |= {name: value for name, value in special.items() if value}
        values["info"] = info.name if info.suffix == ".txt" else self.info
        return {f"data.{name}": value for name, value in values.items()}
