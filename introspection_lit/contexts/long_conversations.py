"""Long and many-turned conversations, made by joining contexts of a split.

Built-in contexts are single exchanges of at most some 130 tokens; conversations in use are longer. Joined ones have several
exchanges, a system prompt, documents pasted into a message, or the output of a tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.token_places import user_starts
from introspection_lit.contexts.usable import usable_contexts
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Kinds of joined contexts: of texts of kinds that training sees, and of others.
JOINED, JOINED_UNSEEN = "joined", "joined, unseen kinds"
# Texts around the contexts, for training and validation, and others for tests.
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful assistant for a software team. Answer briefly, and say so when you do not know.",
    "You answer in the language of the user. Be polite, be exact, and do not invent facts.",
    "You are a tutor. Explain step by step, ask before you assume, and give an example where one helps.",
    "Today is Tuesday. The user is on a phone: keep answers short. No lists unless they are asked for.",
    "You have access to tools. Use them when a question needs facts that you do not have.",
    "Role: editor. Keep the author's voice. Mark what you change. Never add claims.",
    "You work for a small shop. Help customers with orders, returns and opening hours; everything else goes to a person.",
)
TEST_SYSTEM_PROMPTS = (
    "You are an assistant that helps with whatever comes up. Keep to what the user has asked.",
    "You support researchers. Quote sources where you can. If a request is unclear, ask one question back.",
    "Answer in full sentences. The conversation may be read by children.",
    "You are the help desk of a library. Hours: 9 to 17. Be friendly, and keep answers under a hundred words.",
)
DOCUMENTS = (
    "Here is what I have so far:",
    "Please read this:",
    "From the file that I mentioned:",
    "I copied this for you:",
)
TEST_DOCUMENTS = ("This is the text:", "The document says:", "See below.")
TOOLS = ("Output of the tool `search`:", "Tool result:", "The command printed:")
TEST_TOOLS = ("Result of the call:", "Returned by the tool `read_file`:")
LOOKING = ("Let me look that up.", "One moment, I will check.", "I will run it.")
# Shares of conversations with a system prompt and with texts of one kind only, and of exchanges of several texts with
# pasted documents or with a tool's output.
SYSTEM_SHARE, ONE_KIND_SHARE, DOCUMENT_SHARE, TOOL_SHARE = 0.4, 0.5, 0.4, 0.2
# Tokens that a template writes around an exchange, about.
AROUND = 12


def long_contexts(
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    question: str,
    contexts: Sequence[Context],
    ranges: Sequence[tuple[int, int]],
    exchanges: int,
    seed: int,
    split: str,
    unseen: bool = False,
    test: bool = False,
) -> list[Context]:
    """Join contexts into conversations, each a pure function of (seed, split, its number).

    The length is drawn log-uniformly, the number of exchanges too, from 1 on, as far as there are texts enough. No text
    comes twice in a conversation before all have been used in it.

    Args:
        tokenizer: The model's.
        phrasing: System prompt (of conversations without one of their own) and the texts around a question.
        question: Any question of the experiment.
        contexts: Contexts of the split, each a single exchange; others are left out.
        ranges: Fewest and most tokens of each conversation.
        exchanges: Most exchanges of a conversation.
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        unseen: The contexts are of kinds that training does not see.
        test: Use the texts around contexts that only tests use.

    Returns:
        A conversation for each range, of at most so many tokens. Its kind is :data:`JOINED` or :data:`JOINED_UNSEEN`; a
        single context keeps its own.

    Raises:
        ConfigurationError: There is no context to join, or one range is shorter than any conversation.
    """
    pieces = [context for context in contexts if [turn.role for turn in context.turns] == ["user", "assistant"]]
    pieces = [context for context in pieces if not context.question_turns]
    if not pieces:
        raise ConfigurationError([f"data.long: {split} has no context of one exchange that could be joined."])
    tokens = np.array([_text_tokens(tokenizer, context) for context in pieces])
    of_kind: dict[str, list[int]] = {}
    for place, context in enumerate(pieces):
        of_kind.setdefault(context.kind, []).append(place)
    system = _takes_system_prompts(tokenizer, phrasing, question, pieces[0])
    made = []
    for number, (fewest, most) in enumerate(ranges):
        random = generator(seed, "long", split, number)
        target = int(np.exp(random.uniform(*np.log([fewest, most]))))
        pool = of_kind[_draw(random, list(of_kind))] if random.random() < ONE_KIND_SHARE else range(len(pieces))
        chosen = [pool[place] for place in _choose(tokens[list(pool)], target, random)]
        wanted = int(np.exp(random.uniform(0, np.log(exchanges + 1))))
        prompt = _draw(random, TEST_SYSTEM_PROMPTS if test else SYSTEM_PROMPTS)
        prompt = prompt if system and random.random() < SYSTEM_SHARE else ""
        while chosen:
            context = _join(
                [pieces[place] for place in chosen], wanted, prompt, generator(seed, "join", split, number), test
            )
            context = replace(context, kind=JOINED_UNSEEN) if unseen and is_joined(context) else context
            if usable_contexts(tokenizer, [context], question, phrasing, most):
                break
            chosen, prompt = (chosen, "") if prompt and len(chosen) == 1 else (chosen[:-1], prompt)
        if not chosen:
            context = pieces[int(tokens.argmin())]
            if not usable_contexts(tokenizer, [context], question, phrasing, most):
                raise ConfigurationError([f"data.long: {split} has no context of at most {most} tokens."])
        made.append(context)
    return made


def exchange_spans(
    tokenizer: PreTrainedTokenizerBase, context: Context, question: str, phrasing: Phrasing
) -> list[tuple[int, int]]:
    """The tokens of each exchange of a context, as (first, one after the last); together they are the whole context.

    An exchange begins with the text of a user message, the first with the conversation. Arguments as for
    :func:`~introspection_lit.contexts.conversations.render`.
    """
    starts, length = user_starts(tokenizer, context, question, phrasing)
    return list(zip([0, *starts[1:]], [*starts[1:], length], strict=True))


def is_joined(context: Context) -> bool:
    """Whether a context is made of others."""
    return context.kind in (JOINED, JOINED_UNSEEN)


def exchanges_of(context: Context) -> int:
    """Number of exchanges of a context: of its user messages."""
    return sum(turn.role == "user" for turn in context.turns)


def _choose(tokens: np.ndarray, target: int, random: np.random.Generator) -> list[int]:
    """Contexts in random order that have about ``target`` tokens together, by their indices."""
    chosen: list[int] = []
    room, shortest = target - AROUND, int(tokens.min()) + AROUND
    while room >= shortest:
        for place in random.permutation(len(tokens)).tolist():
            if tokens[place] + AROUND <= room:
                chosen.append(place)
                room -= tokens[place] + AROUND
    return chosen


def _join(pieces: Sequence[Context], wanted: int, prompt: str, random: np.random.Generator, test: bool) -> Context:
    """Join contexts into a conversation of at most ``wanted`` exchanges."""
    count = min(wanted, len(pieces))
    cuts = [0, *sorted(random.choice(np.arange(1, len(pieces)), count - 1, replace=False).tolist()), len(pieces)]
    turns = [Message("system", prompt)] if prompt else []
    for first, last in pairwise(cuts):
        turns += _exchange(pieces[first:last], random, test)
    if len(turns) == 2 and len(pieces) == 1:
        return pieces[0]
    return Context(JOINED, tuple(turns))


def _exchange(pieces: Sequence[Context], random: np.random.Generator, test: bool) -> Iterator[Message]:
    """The messages of one exchange; with a tool's output they are two."""
    users, replies = ([piece.turns[place].content for piece in pieces] for place in (0, 1))
    form = random.random()
    if len(pieces) > 1 and form < DOCUMENT_SHARE:
        intro = _draw(random, TEST_DOCUMENTS if test else DOCUMENTS)
        pasted = [text for pair in zip(users[1:], replies[1:], strict=True) for text in pair]
        yield Message("user", "\n\n".join([users[0], intro, *pasted]))
        yield Message("assistant", replies[0])
    elif len(pieces) > 1 and form < DOCUMENT_SHARE + TOOL_SHARE:
        yield Message("user", users[0])
        yield Message("assistant", _draw(random, LOOKING))
        yield Message("user", "\n\n".join([_draw(random, TEST_TOOLS if test else TOOLS), *users[1:], *replies[1:]]))
        yield Message("assistant", replies[0])
    else:
        yield Message("user", "\n\n".join(users))
        yield Message("assistant", "\n\n".join(replies))


def _draw(random: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[int(random.integers(len(texts)))]


def _text_tokens(tokenizer: PreTrainedTokenizerBase, context: Context) -> int:
    """Tokens of a context's texts, without those of the template."""
    return sum(len(tokenizer(turn.content, add_special_tokens=False)["input_ids"]) for turn in context.turns)


def _takes_system_prompts(tokenizer: PreTrainedTokenizerBase, phrasing: Phrasing, question: str, context: Context) -> bool:
    """Whether the chat template takes a system prompt; some refuse the role."""
    with_prompt = Context(context.kind, (Message("system", SYSTEM_PROMPTS[0]), *context.turns))
    try:
        encode(tokenizer, with_prompt, question, phrasing)
    except ConfigurationError:
        return False
    return True
