"""A detector: a model with its adapter that says whether it was steered while it read a conversation. Needs no Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from introspection_lit.contexts.conversations import Encoded, Phrasing, encode
from introspection_lit.contexts.rows import Conversation, as_context
from introspection_lit.models.adapter_config import Adapter
from introspection_lit.models.adapter_weights import load_adapter, weight_mismatches
from introspection_lit.models.adapters import (
    BANK,
    DESCRIPTION,
    EMBEDDED,
    adapter_file_problems,
    base_mismatches,
    own_template,
    read_adapter,
)
from introspection_lit.models.architecture import find_decoder_layers, usable_positions
from introspection_lit.models.architectures import examine, reach
from introspection_lit.models.attention_reach import layer_reaches
from introspection_lit.models.base_identity import BaseIdentity
from introspection_lit.models.base_model import BaseModel, nf4_on_cpu_problems
from introspection_lit.models.loading import load_config, load_model, load_tokenizer, read_template
from introspection_lit.steering.caches import row_tensors
from introspection_lit.steering.intervention import Intervention
from introspection_lit.steering.prefill import pad, steered_cache
from introspection_lit.steering.question_pass import read_answers
from introspection_lit.steering.specification import Steering
from introspection_lit.steering.vector_bank import REMEDY, VectorBank
from introspection_lit.tasks.adapter_record import base_of, recorded_wording
from introspection_lit.tasks.answer_tokens import find_answer_tokens
from introspection_lit.tasks.questions import QUESTION, builtin_questions
from introspection_lit.tasks.scoring import log_odds, mass
from introspection_lit.training.window_checks import unread_band
from introspection_lit.utils.errors import ConfigurationError, Problems, RunError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

OTHER_BASE = "Give its place as base; naming another model there says that they match"
# Options as messages of the command line name them, and their names here.
NAMES = {
    "model.adapter: ": "",
    "data.bank: ": "",
    "data.contexts: ": "",
    "data.bands: ": "steering.band: ",
}


class Answer(NamedTuple):
    """The answer to the detector's question about one conversation.

    Attributes:
        steered: Whether the log-odds are above the threshold.
        log_odds: logit(yes) - logit(no) of the answer words, in nats.
        threshold: Of the adapter, on the log-odds; chosen on validation data.
        mass: P(yes) + P(no), in [0, 1]. Where it is small, the log-odds mean nothing.
    """

    steered: bool
    log_odds: float
    threshold: float
    mass: float


@dataclass
class _Batch:
    cache: Cache | None
    context_mask: Tensor
    question_ids: Tensor
    question_mask: Tensor
    cache_of: Tensor | None = None
    question_prefix_ids: Tensor | None = None


class Detector:
    """A model with its adapter, and the question that the adapter was trained to answer.

    Args:
        model: With the adapter on it.
        tokenizer: The model's.
        layers: The model's decoder layers.
        question: What is asked, answer words included; None: the built-in question.
        phrasing: System prompt, answer words, how the answer starts, and what is said before the question.
        threshold: On the log-odds.
        prefill_adapter: The adapter is on while conversations are read, not only while the question is answered.
        bank: Vectors and residual norms of this model.
        lead_in: What the questions that the adapter was trained to answer begin with; ``question`` has it already.
        concepts: Names of the concepts that the adapter was trained to name; none: it was not.

    Raises:
        ConfigurationError: An answer word is not one token.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: Sequence[nn.Module],
        question: str | None = None,
        phrasing: Phrasing = Phrasing(),
        threshold: float = 0.0,
        prefill_adapter: bool = False,
        bank: VectorBank | None = None,
        lead_in: str = "",
        concepts: tuple[str, ...] = (),
    ) -> None:
        self.model, self.tokenizer, self.layers = model.eval(), tokenizer, list(layers)
        self.question = question or builtin_questions([QUESTION], phrasing.answers)[0]
        self.phrasing, self.answer_ids = find_answer_tokens(tokenizer, [], [self.question], phrasing)
        self.threshold, self.prefill_adapter, self.bank = threshold, prefill_adapter, bank
        self.lead_in, self.concepts = lead_in, concepts
        self.config = model.get_base_model().config.get_text_config(decoder=True)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path = EMBEDDED,
        base: str | BaseModel | None = None,
        device: torch.device | str | None = None,
    ) -> Detector:
        """Load an adapter and its base model.

        Args:
            folder_or_hub_id: An adapter as a run exports it (``adapter`` in the run's folder), or any PEFT adapter; by
                default the one that comes with this package, for the embedded model. Its ``introspection.json`` says which
                model it is for, and what is asked; without that file the default question is asked, and the threshold is 0.
                A ``vectors.safetensors`` in the folder or the one above it becomes the detector's bank.
            base: Another place to load the base model from, or other options of it. Needed where there is no
                ``introspection.json``.
            device: Where the model goes; by default a GPU, if there is one.

        Raises:
            ConfigurationError: The adapter or the model cannot be used; all problems.
        """
        problems = Problems()
        adapter = problems.attempt(read_adapter, str(folder_or_hub_id))
        _raise(problems)
        assert adapter is not None
        spec = base_of(adapter, base)
        identity, otherwise = BaseIdentity(spec, accepts_any=base is not None), OTHER_BASE if base is None else ""
        problems.add(base_mismatches(adapter, identity, otherwise))
        if adapter.description is None:
            warnings.warn(f"{adapter.name} has no {DESCRIPTION}: default question, threshold 0.", stacklevel=2)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        problems.add(adapter_file_problems(adapter))
        own = own_template(adapter)
        template = problems.attempt(read_template, own) if own is not None else None
        config, tokenizer = problems.attempt(load_config, spec), problems.attempt(load_tokenizer, spec, template)
        if config is None and base is None:
            problems.add([f"{adapter.name} was made for the model {spec.name!r}: give its place as base."])
        if config is not None:
            problems.add(nf4_on_cpu_problems(spec, config, device.type))
            found = examine(spec, config)
            problems.add(found.problems)
            if found.attention != spec.implementation:
                warnings.warn(f"{spec.name} has no {spec.implementation}: attention is {found.attention}.", stacklevel=2)
            spec = replace(spec, attention=found.attention)
        if not problems.found:
            problems.add(
                f"{adapter.name} does not fit {spec.name}: {misfit}." for misfit in weight_mismatches(adapter, spec)
            )
        _raise(problems)
        model = problems.attempt(load_model, spec, device)
        problems.add(base_mismatches(adapter, identity, otherwise))  # of a hub id whose weights were not there before
        layers = problems.attempt(find_decoder_layers, model, spec.decoder_layers) if model is not None else None
        _raise(problems)
        assert config and tokenizer and model and layers  # noqa: PT018 - a missing one is a problem, and raised by now
        bank = _bank_beside(adapter, identity, config.hidden_size, len(layers))
        return cls(load_adapter(model, adapter, identity), tokenizer, layers, **recorded_wording(adapter), bank=bank)

    def ask(self, user: str | Sequence[Mapping[str, str]], assistant: str = "", steering: Steering | None = None) -> Answer:
        """Let the model read a conversation, steered or not, then ask whether it was steered.

        Args:
            user: A user message; or a whole conversation, as messages with ``role`` and ``content``.
            assistant: The reply to the message. Empty: an empty reply; adapters are trained on replies with text.
            steering: What is added while the conversation is read; None: nothing.

        Raises:
            ConfigurationError: The conversation or the steering cannot be used.
            RunError: A score is NaN or infinite.
        """
        return self.ask_many([(user, assistant) if isinstance(user, str) else user], steering)[0]

    def ask_many(
        self,
        conversations: Sequence[Conversation],
        steering: Steering | Sequence[Steering | None] | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """Ask about several conversations, each on its own; see :meth:`ask`.

        Args:
            conversations: Each a user message, a (message, reply) pair, a list of messages with ``role`` and ``content``,
                or a :class:`~introspection_lit.contexts.context.Context`, of which only the turns are read.
            steering: One for all conversations, or one (or None) for each.
            batch_size: Conversations at a time; the answers are the same but for rounding.

        Returns:
            The answers, in the order of the conversations.

        Raises:
            ConfigurationError: A conversation or a steering cannot be used; all problems.
            RunError: A score is NaN or infinite.
        """
        each = [steering] * len(conversations) if isinstance(steering, Steering | None) else list(steering)
        if len(each) != len(conversations) or batch_size < 1:
            got = f"{len(conversations)} conversations, {len(each)} steerings and batch_size {batch_size}"
            raise ConfigurationError([f"got {got}. Expected one steering for each conversation, and a size of 1 or more."])
        problems = Problems()
        encoded = [self._encoded(number, one, problems) for number, one in enumerate(conversations, start=1)]
        added = [problems.attempt(self._added, one) for one in each]
        for row, (one, lengths) in enumerate(zip(encoded, added, strict=True), start=1):
            if one and lengths and (steered := lengths[1].nonzero().flatten().tolist()):
                problem = unread_band(layer_reaches(self.config), (steered[0], steered[-1]), len(one.question_ids))
                problems.add([problem and f"steering of conversation {row}: {problem}"])
        _raise(problems)
        answers: list[Answer] = []
        for start in range(0, len(encoded), batch_size):
            rows = slice(start, start + batch_size)
            answers += self._answers([e for e in encoded[rows] if e], [a for a in added[rows] if a])
        return answers

    def context_ids(self, user: str | Sequence[Mapping[str, str]], assistant: str = "") -> Tensor:
        """The tokens of a conversation, ``(1, tokens)``: what another library reads to fill a cache for :meth:`ask_cache`.

        Args:
            user: As for :meth:`ask`.
            assistant: As for :meth:`ask`.

        Raises:
            ConfigurationError: The conversation cannot be used.
        """
        encoded = self._encoded_alone(user, assistant)
        return torch.tensor([encoded.context_ids], device=self.model.get_base_model().device)

    def ask_cache(self, cache: Cache, user: str | Sequence[Mapping[str, str]], assistant: str = "") -> Answer:
        """Ask whether the model was steered while it read a conversation that it has read already, whatever steered it.

        Args:
            cache: What the base model, without the adapter, has written while it read the tokens of :meth:`context_ids`,
                one row. It is not changed.
            user: The conversation, as for :meth:`ask`.
            assistant: As for :meth:`ask`.

        Raises:
            ConfigurationError: The conversation cannot be used, or the cache is not of its length or of one row.
            RunError: A score is NaN or infinite.
        """
        encoded = self._encoded_alone(user, assistant)
        tokens, rows = cache.get_seq_length(), {len(part) for layer in cache.layers for part in row_tensors(layer).values()}
        if tokens != len(encoded.context_ids) or rows != {1}:
            got = f"{tokens} tokens in {', '.join(map(str, sorted(rows))) or 'no'} rows"
            expected = f"Expected the {len(encoded.context_ids)} of context_ids in 1 row"
            raise ConfigurationError([f"cache: got {got}. {expected}: fill it with these alone, without the question."])
        device = self.model.get_base_model().device
        return self._read(cache, torch.ones(1, tokens, dtype=torch.long, device=device), [encoded])[0]

    def _encoded_alone(self, user: str | Sequence[Mapping[str, str]], assistant: str) -> Encoded:
        problems = Problems()
        encoded = self._encoded(1, (user, assistant) if isinstance(user, str) else user, problems)
        _raise(problems)
        assert encoded is not None
        return encoded

    def _encoded(self, number: int, conversation: Conversation, problems: Problems) -> Encoded | None:
        """Tokens of a conversation and the question; None, and its problems are added, if it cannot be used."""
        problem, window = None, usable_positions(self.config)
        try:
            encoded = encode(self.tokenizer, as_context(conversation), self.question, self.phrasing)
            tokens = len(encoded.context_ids) + len(encoded.question_ids)
            if window is not None and tokens > window:
                problem = f"it has {tokens} tokens with the question; the model takes {window}. Shorten it."
        except ConfigurationError as error:
            problem = " ".join(map(_renamed, error.problems))
        problems.add([problem and f"conversation {number}: {problem}"])
        return encoded if problem is None else None

    def _added(self, steering: Steering | None) -> tuple[Tensor, Tensor]:
        """Directions, ``(layers, hidden)``, and the length that is added at each layer, ``(layers,)``."""
        layers, hidden = len(self.layers), int(self.config.hidden_size)
        if steering is None:
            return torch.zeros(layers, hidden), torch.zeros(layers)
        norms = self.bank.residual_norms if self.bank is not None else None
        return steering.added(layers, hidden, norms, reach(self.config))

    def _answers(self, encoded: list[Encoded], added: list[tuple[Tensor, Tensor]]) -> list[Answer]:
        """Both passes over one batch: the steered prefill, and the question pass."""
        device = self.model.get_base_model().device
        fill = self.tokenizer.pad_token_id or 0
        ids, mask = (part.to(device) for part in pad([row.context_ids for row in encoded], fill, "left"))
        direction, scale = (torch.stack(parts) for parts in zip(*added, strict=True))
        intervention = Intervention(direction.to(device), scale.to(device), mask.bool())
        cache = steered_cache(self.model, self.model, self.layers, ids, mask, intervention, self.prefill_adapter)
        return self._read(cache, mask, encoded)

    def _read(self, cache: Cache, mask: Tensor, encoded: list[Encoded]) -> list[Answer]:
        """The question pass over a cache of left-padded contexts, whose mask is ``(rows, tokens)``."""
        fill = self.tokenizer.pad_token_id or 0
        question = (part.to(mask.device) for part in pad([row.question_ids for row in encoded], fill, "right"))
        with torch.no_grad():
            logits = read_answers(self.model, _Batch(cache, mask, *question)).cpu()
        scores, masses = (score(logits, torch.tensor(self.answer_ids)) for score in (log_odds, mass))
        if broken := int((~(scores.isfinite() & masses.isfinite())).sum()):
            raise RunError([f"{broken} of {len(scores)} answers have a score that is NaN or infinite. Steer less."])
        both = zip(scores.tolist(), masses.tolist(), strict=True)
        return [Answer(score > self.threshold, score, self.threshold, total) for score, total in both]


def _renamed(problem: str) -> str:
    """A problem of an option, named as in Python."""
    for option, name in NAMES.items():
        if problem.startswith(option):
            return name + problem.removeprefix(option)
    return problem


def _raise(problems: Problems) -> None:
    problems.found = list(dict.fromkeys(map(_renamed, problems.found)))
    problems.raise_if_any()


def _bank_beside(adapter: Adapter, identity: BaseIdentity, hidden: int, n_layers: int) -> VectorBank | None:
    """The vector bank in the adapter's folder or the one above; one for another model than the adapter's is not used."""
    path = next((f / BANK for f in (adapter.folder, adapter.folder.parent) if (f / BANK).is_file()), None)
    if path is None:
        return None
    try:
        bank, made_for = VectorBank.load(path), (adapter.config.base_model_name_or_path, adapter.config.revision or "")
        problems = bank.misfits(identity.base.name, hidden, n_layers)
        if (bank.metadata.get("base_model"), bank.metadata.get("revision")) != made_for:
            problems += identity.problems("data.bank: it", bank.metadata, REMEDY.rstrip("."))
    except ConfigurationError as error:
        problems = error.problems
    if problems:
        warnings.warn(f"{path} is not used: {_renamed(problems[0])}", stacklevel=3)
    return None if problems else bank
