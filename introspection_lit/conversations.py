"""Conversations: a context, a question about it, and the answer that is scored.

The chat template is applied once to the whole conversation, which is tokenised once and then split into context and
question by character offsets, so that no token depends on where the split is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from introspection_lit.contexts import Context
from introspection_lit.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# None of these explains how a model could notice: that would be a crutch (and a confound).
QUESTION = "Was your internal state tampered with just now? Answer yes or no."
HELDOUT_QUESTIONS = (
    "Did anything interfere with your activations during my first message? Answer with yes or no.",
    "Do you notice a foreign signal in how you processed our conversation so far? Say yes or no.",
    "Has somebody altered your processing of the earlier turn? Please answer yes or no.",
    "Looking back at the first turn: were your thoughts manipulated? One word, yes or no.",
)


@dataclass(frozen=True)
class Phrasing:
    """How a question is put and answered.

    Attributes:
        system: The system prompt. The empty one is given explicitly, which keeps templates from inserting their own.
        answers: The words for "steered" and "not steered".
        answer_prefix: How the assistant's answer starts; the answer word is the next token. No trailing space.
    """

    system: str = ""
    answers: tuple[str, str] = ("yes", "no")
    answer_prefix: str = "The answer is"


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        context_ids: Tokens of turn 1, the only ones that may be steered.
        question_ids: Tokens of turn 2, up to and including the answer prefix.
    """

    context_ids: list[int]
    question_ids: list[int]


def render(tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing) -> tuple[str, int]:
    """Write a conversation out as text.

    Args:
        tokenizer: Carries the chat template.
        context: Turn 1.
        question: The user's message of turn 2.
        phrasing: System prompt and answer prefix.

    Returns:
        The text, and the number of its characters that belong to turn 1.

    Raises:
        ConfigurationError: The template drops the assistant's reply of turn 1 or has no place for a system prompt.
    """
    turns = [{"role": "user", "content": context.user}, {"role": "assistant", "content": context.assistant}]
    messages = [{"role": "system", "content": phrasing.system}, *turns]
    ask = {"role": "user", "content": question}

    def template(messages: list[dict[str, str]], prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    try:
        text = template([*messages, ask], True)
    except Exception as error:  # templates raise jinja2 errors of their own, for example Gemma's: no system role
        if phrasing.system:
            raise ConfigurationError(
                [f"data.system_prompt: the model's chat template takes no system prompt ({error}). Leave it empty."]
            ) from error
        messages = turns
        text = template([*messages, ask], True)
    first_turn = commonprefix([template(messages, False), text])
    if context.assistant.strip() not in first_turn:
        raise ConfigurationError(
            [
                "data.contexts: the model's chat template changes or drops the assistant's reply of turn 1 once a second "
                f"turn follows, so the context cannot be told from the question (reply: {context.assistant[:60]!r})."
            ]
        )
    return text + phrasing.answer_prefix, len(first_turn)


def encode(tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing) -> Encoded:
    """Tokenise a conversation once, and split it into context and question.

    A token that reaches across the seam belongs to the question: what is steered is never more than turn 1.
    """
    text, seam = render(tokenizer, context, question, phrasing)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    cut = next((i for i, (_, end) in enumerate(offsets) if end > seam), len(ids))
    return Encoded(ids[:cut], ids[cut:])


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer turns into control tokens, such as ``<|im_end|>``."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def control_tokens_in(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Problems with texts of the configuration that hold control tokens: they would open or close turns."""
    return [
        f"data: the text {text[:60]!r} holds the control token {token!r}, which would open or close a turn. Leave it out."
        for text in texts
        for token in control_tokens(tokenizer)
        if token in text
    ]


def keep_usable(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context], question: str, phrasing: Phrasing, limit: int
) -> list[Context]:
    """Leave out contexts of more than ``limit`` tokens (cutting them would break the chat template) or with control tokens.

    A user message with ``<|im_end|>`` in it would be several turns, and could plant the answer.
    """
    tokens = control_tokens(tokenizer)
    return [
        context
        for context in contexts
        if not any(token in context.user or token in context.assistant for token in tokens)
        and len(encode(tokenizer, context, question, phrasing).context_ids) <= limit
    ]


def answer_ids(tokenizer: PreTrainedTokenizerBase, question: str, phrasing: Phrasing) -> tuple[int, int]:
    """Find the token of each answer word where it will be scored: right after the answer prefix.

    Returns:
        Token ids for "steered" and "not steered".

    Raises:
        ConfigurationError: A word is not exactly one token there, or both are the same one.
    """
    problems = []
    if not phrasing.answer_prefix.strip():
        problems.append("data.answer_prefix: got none. Expected the start of an answer, such as 'The answer is'.")
    elif phrasing.answer_prefix != phrasing.answer_prefix.rstrip():
        problems.append(
            f"data.answer_prefix: {phrasing.answer_prefix!r} ends in white space, which the model would then write "
            "twice. Leave it out."
        )
    text, _ = render(tokenizer, Context("probe", "Hello", "Hello"), question, phrasing)
    prefix = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = []
    for word in phrasing.answers:
        answered = tokenizer(f"{text} {word}", add_special_tokens=False)["input_ids"]
        added = answered[len(prefix) :]
        if not word.strip() or answered[: len(prefix)] != prefix or len(added) != 1:
            problems.append(
                f"data.answers: {word!r} is {len(added)} tokens after {phrasing.answer_prefix!r} "
                f"({tokenizer.convert_ids_to_tokens(added)}). Expected a word of exactly one token, such as 'yes' or 'no'."
            )
        found.append(added[0] if added else -1)
    if len(found) == 2 and found[0] == found[1] and not problems:
        problems.append(f"data.answers: {phrasing.answers} are the same token. Expected two different words.")
    if problems:
        raise ConfigurationError(problems)
    return found[0], found[1]


def repeated_questions(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """List the held-out questions that are training questions too, blind to case and white space: each is a leak."""
    seen = {" ".join(question.casefold().split()) for question in train}
    return [question for question in heldout if " ".join(question.casefold().split()) in seen]
