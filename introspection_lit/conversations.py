"""Conversations: a context, a question about it, and the start of the answer, as text and as tokens.

The chat template is applied once to the whole conversation, which is tokenised once and then split into context and
question by character offsets, so that no token depends on where the split is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

from introspection_lit.contexts import Context, Message
from introspection_lit.errors import ConfigurationError
from introspection_lit.questions import YES_NO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Phrasing:
    """How a question is put and answered.

    Attributes:
        system: The system prompt. The empty one is given explicitly, which keeps templates from inserting their own.
        answers: The words for "steered" and "not steered".
        answer_prefix: How the assistant's answer starts; the answer word is the next token. No trailing space.
        info: Said before the question, in the same message.
        joint: What follows the answer prefix, whichever that is: a space where the tokenizer makes it a token of its own
            before these answers, as some do before digits (see :func:`~introspection_lit.answers.settle`).
    """

    system: str = ""
    answers: tuple[str, str] = YES_NO
    answer_prefix: str = "The answer is"
    info: str = ""
    joint: str = ""


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        context_ids: Tokens of turn 1, the only ones that may be steered.
        question_ids: Tokens of turn 2, up to and including the answer prefix.
    """

    context_ids: list[int]
    question_ids: list[int]


def render(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing
) -> tuple[str, int]:
    """Write a conversation out as text.

    Args:
        tokenizer: Carries the chat template.
        context: What is steered.
        question: The user's message after it; None: what the context itself asks.
        phrasing: System prompt, what is said before the question, and answer prefix.

    Returns:
        The text, and the number of its characters that belong to the context.

    Raises:
        ConfigurationError: The template drops a message of the context, refuses the roles, or has no place for a system
            prompt.
    """
    turns = [message._asdict() for message in context.turns]
    asked = list(context.asked) if question is None else [Message("user", question)]
    prefix = asked.pop().content if asked[-1].role == "assistant" else phrasing.answer_prefix
    if phrasing.info:
        number = max(index for index, message in enumerate(asked) if message.role == "user")
        asked[number] = Message("user", f"{phrasing.info}\n\n{asked[number].content}")
    ask = [message._asdict() for message in asked]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else phrasing.system

    def template(messages: list[dict[str, str]], prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    messages = [{"role": "system", "content": system}, *turns]
    try:
        text = template([*messages, *ask], True)
    except Exception as error:  # templates raise jinja2 errors of their own, for example Gemma's: no system role
        if system:
            raise ConfigurationError(
                [f"data.system_prompt: the model's chat template takes no system prompt ({error}). Leave it empty."]
            ) from error
        messages = turns
        try:
            text = template([*messages, *ask], True)
        except Exception as second:
            roles = ", ".join(message["role"] for message in [*messages, *ask])
            raise ConfigurationError(
                [f"data.contexts: the model's chat template refuses a conversation of {roles} ({second})."]
            ) from second
    first_turn = commonprefix([template(messages, False), text])
    for turn in turns:
        if turn["content"].strip() not in first_turn:
            raise ConfigurationError(
                [
                    "data.contexts: the model's chat template changes or drops a message of the context once others "
                    f"follow, so the context cannot be told from the question ({turn['role']}: {turn['content'][:60]!r})."
                ]
            )
    return text + prefix + phrasing.joint, len(first_turn)


def encode(tokenizer: PreTrainedTokenizerBase, context: Context, question: str | None, phrasing: Phrasing) -> Encoded:
    """Tokenise a conversation once, and split it into context and question; see :func:`render`.

    A token that reaches across the seam belongs to the question: what is steered is never more than the context.
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


def has_control_tokens(tokenizer: PreTrainedTokenizerBase, context: Context) -> bool:
    """Whether a message of a context would open or close turns."""
    tokens = control_tokens(tokenizer)
    return any(token in message.content for message in (*context.turns, *context.asked) for token in tokens)


def keep_usable(
    tokenizer: PreTrainedTokenizerBase, contexts: Sequence[Context], question: str, phrasing: Phrasing, limit: int
) -> list[Context]:
    """Leave out contexts of more than ``limit`` tokens (cutting them would break the chat template) or with control tokens.

    A user message with ``<|im_end|>`` in it would be several turns, and could plant the answer.
    """
    return [
        context
        for context in contexts
        if not has_control_tokens(tokenizer, context)
        and len(encode(tokenizer, context, question, phrasing).context_ids) <= limit
    ]


def repeated_questions(train: Sequence[str], heldout: Sequence[str]) -> list[str]:
    """List the held-out questions that are training questions too, blind to case and white space: each is a leak."""
    seen = {" ".join(question.casefold().split()) for question in train}
    return [question for question in heldout if " ".join(question.casefold().split()) in seen]
