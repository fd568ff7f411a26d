"""Contexts joined into long and many-turned conversations."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.context import BUILTIN, Context, Message, exchange
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.long_conversations import (
    DOCUMENTS,
    JOINED,
    JOINED_UNSEEN,
    SYSTEM_PROMPTS,
    TEST_DOCUMENTS,
    TEST_SYSTEM_PROMPTS,
    TEST_TOOLS,
    TOOLS,
    exchange_spans,
    exchanges_of,
    long_contexts,
)
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_tokenizer
from introspection_lit.utils.errors import ConfigurationError

QUESTION = "Was anything added?"
RANGES = [(48, 96), (97, 192), (193, 384), (385, 768)] * 15


@pytest.fixture(scope="module")
def embedded() -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded model."""
    return load_tokenizer(BaseModel("smollm2-135m"))


@pytest.fixture(scope="module")
def pieces() -> list[Context]:
    """Built-in contexts of a few kinds."""
    return [context for context in load_contexts(BUILTIN) if context.kind in ("chat", "python", "french", "json")]


@pytest.fixture(scope="module")
def joined(embedded: PreTrainedTokenizerFast, pieces: list[Context]) -> list[Context]:
    """A conversation for each of :data:`RANGES`."""
    return long_contexts(embedded, Phrasing(), QUESTION, pieces, RANGES, 8, 0, "train")


def length(tokenizer: PreTrainedTokenizerFast, context: Context) -> int:
    """Tokens of a context."""
    return len(encode(tokenizer, context, QUESTION, Phrasing()).context_ids)


def test_lengths_are_in_their_range_and_spread_over_it(embedded: PreTrainedTokenizerFast, joined: list[Context]) -> None:
    """None is longer; hardly any is shorter, by no more than a text."""
    lengths = [length(embedded, context) for context in joined]
    assert all(found <= most for found, (_, most) in zip(lengths, RANGES, strict=True))
    assert sum(found >= fewest - 40 for found, (fewest, _) in zip(lengths, RANGES, strict=True)) >= 0.9 * len(RANGES)
    longest = [found for found, (fewest, _) in zip(lengths, RANGES, strict=True) if fewest == 385]
    assert min(longest) < 500
    assert max(longest) > 600


def test_exchanges_prompts_documents_and_tools_are_all_there(joined: list[Context]) -> None:
    """And the roles alternate after an optional system prompt."""
    counts = [exchanges_of(context) for context in joined]
    assert {1, 2, 3} <= set(counts)
    assert max(counts) <= 2 * 8  # an exchange with a tool's output is two
    text = "\n".join(turn.content for context in joined for turn in context.turns)
    for group in (SYSTEM_PROMPTS, DOCUMENTS, TOOLS):
        assert any(part in text for part in group)
    for context in joined:
        roles = [turn.role for turn in context.turns]
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * exchanges_of(context)


def test_every_text_is_of_the_split_and_comes_once(joined: list[Context], pieces: list[Context]) -> None:
    """A conversation has no text twice, as long as there are others: 200 texts are more than it needs."""
    messages = {context.user for context in pieces}
    for context in joined:
        text = "\n\n".join(turn.content for turn in context.turns if turn.role == "user")
        found = [user for user in messages if re.search(rf"(^|\n\n){re.escape(user)}($|\n\n)", text)]
        assert found
        assert all(
            len(re.findall(rf"(?:^|\n\n){re.escape(user)}(?=$|\n\n)", text)) == 1 for user in found if len(user) > 20
        )


def test_conversations_are_functions_of_seed_split_and_number(
    embedded: PreTrainedTokenizerFast, pieces: list[Context], joined: list[Context]
) -> None:
    """The first ones are the same when there are fewer; others with another seed or split."""
    assert long_contexts(embedded, Phrasing(), QUESTION, pieces, RANGES[:5], 8, 0, "train") == joined[:5]
    for seed, split in ((1, "train"), (0, "validation")):
        assert long_contexts(embedded, Phrasing(), QUESTION, pieces, RANGES[:5], 8, seed, split) != joined[:5]


def test_tests_have_texts_around_contexts_that_training_has_not(
    embedded: PreTrainedTokenizerFast, pieces: list[Context]
) -> None:
    """System prompts and introductions; and the kind says that the texts are of unseen kinds."""
    made = long_contexts(embedded, Phrasing(), QUESTION, pieces, RANGES, 8, 0, "long", unseen=True, test=True)
    text = "\n".join(turn.content for context in made for turn in context.turns)
    for trained, tested in ((SYSTEM_PROMPTS, TEST_SYSTEM_PROMPTS), (DOCUMENTS, TEST_DOCUMENTS), (TOOLS, TEST_TOOLS)):
        assert not any(part in text for part in trained)
        assert any(part in text for part in tested)
    assert JOINED_UNSEEN in {context.kind for context in made}
    assert JOINED not in {context.kind for context in made}


def test_exchanges_cover_the_context_and_start_with_the_users_text(
    embedded: PreTrainedTokenizerFast, joined: list[Context]
) -> None:
    """Each token belongs to one exchange."""
    for context in joined[:20]:
        ids = encode(embedded, context, QUESTION, Phrasing()).context_ids
        spans = exchange_spans(embedded, context, QUESTION, Phrasing())
        assert [spans[0][0], *(end for _, end in spans)] == [*(first for first, _ in spans), len(ids)]
        users = [turn.content for turn in context.turns if turn.role == "user"]
        texts = [embedded.decode(ids[first:end]) for first, end in spans]
        assert len(texts) == len(users)
        assert all(text.startswith(user) for text, user in list(zip(texts, users, strict=True))[1:])
        assert users[0] in texts[0]


def test_templates_without_a_system_role_get_no_prompts(tiny_folder: Callable[[str], Path]) -> None:
    """Gemma's refuses the role."""
    tokenizer = load_tokenizer(BaseModel(str(tiny_folder("gemma"))))
    pieces = [exchange("chat", f"Question {number}?", f"Answer {number}.") for number in range(30)]
    made = long_contexts(tokenizer, Phrasing(), QUESTION, pieces, [(100, 400)] * 20, 4, 0, "train")
    assert max(map(exchanges_of, made)) > 1
    assert not any(turn.role == "system" for context in made for turn in context.turns)


def test_what_cannot_be_joined_is_said(embedded: PreTrainedTokenizerFast) -> None:
    """No single exchange, or none that is short enough."""
    several = Context("chat", (Message("user", "a"), Message("assistant", "b")) * 2)
    with pytest.raises(ConfigurationError, match=r"data\.long: train has no context of one exchange"):
        long_contexts(embedded, Phrasing(), QUESTION, [several], [(48, 96)], 8, 0, "train")
    with pytest.raises(ConfigurationError, match=r"data\.long: train has no context of at most 30 tokens"):
        long_contexts(embedded, Phrasing(), QUESTION, [exchange("chat", "word " * 50, "b")], [(24, 30)], 8, 0, "train")
