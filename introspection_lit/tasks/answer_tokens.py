"""Answers: the token of each answer word, where it will be scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from introspection_lit.contexts.chat_templates import control_tokens
from introspection_lit.contexts.context import Context, exchange
from introspection_lit.contexts.conversations import Phrasing, control_tokens_in, render
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PROBE = exchange("probe", "Hello", "Hello")
# What is suggested in place of a word of several tokens, as far as the tokenizer has it.
SUGGESTIONS = ("yes", "no", "true", "false", "on", "off", "red", "blue", "left", "right", "A", "B", "1", "0")
# After one of these a word follows without a space.
OPENING = "\"'([{<«“`"


def settle(
    tokenizer: PreTrainedTokenizerBase, contexts: Iterable[Context], questions: Sequence[str], phrasing: Phrasing
) -> tuple[Phrasing, tuple[int, int]]:
    """Find the token of each answer word right after the answer prefix.

    Most tokenizers write a word with the space before it as one token. Some write the space before a digit as a token of
    its own: it then becomes part of the prefix (``joint``). After a quotation mark or bracket there is no space.

    Args:
        tokenizer: The model's.
        contexts: Conversations that ask questions of their own are looked at; the others do not matter.
        questions: The experiment's questions.
        phrasing: The answer words and the answer prefix.

    Returns:
        The phrasing with the ``joint`` that the words need, and the tokens of "steered" and "not steered".

    Raises:
        ConfigurationError: A word is not exactly one token there, both are the same one, or conversations disagree.
    """
    if not all(word.strip() for word in phrasing.answers):
        raise ConfigurationError([f"data.answers: got an empty word in {list(phrasing.answers)}. Expected two words."])
    prefix = phrasing.answer_prefix
    if unfit := control_tokens_in(tokenizer, phrasing.answers, "data.answers"):
        raise ConfigurationError(unfit)
    if not prefix.strip():
        raise ConfigurationError(
            ["data.answer_prefix: got none. Expected the start of an answer, such as 'The answer is'."]
        )
    own = {
        (context.asked[-1].content, context) for context in contexts if context.asked and context.asked[-1].role != "user"
    }
    probes: list[tuple[Context, str | None]] = [(PROBE, question) for question in questions[:1]]
    probes += [(context, None) for context in dict(own).values()]
    found = {}
    for context, question in probes:
        start = phrasing.answer_prefix if question is not None else context.asked[-1].content
        if start != start.rstrip() or not start:
            ending = "ends in white space, which the model would then write twice" if start else "is empty"
            where = "data.answer_prefix" if question is not None else "data.contexts: the start of an answer"
            raise ConfigurationError([f"{where}: {start!r} {ending}. Expected something like 'The answer is'."])
        text, _ = render(tokenizer, context, question, phrasing)
        found[start] = _settle_one(tokenizer, text, start, phrasing.answers)
    if len(set(found.values())) > 1:
        raise ConfigurationError(
            [
                f"data.contexts: the answers {phrasing.answers} are other tokens in some conversations than in others: "
                f"their answers start differently ({', '.join(map(repr, found))}). Expected one way of "
                "starting the answer, such as 'The answer is', or data.answer_prefix to be like it."
            ]
        )
    joint, ids = next(iter(found.values()))
    return replace(phrasing, joint=joint), ids


def _settle_one(
    tokenizer: PreTrainedTokenizerBase, text: str, start: str, answers: tuple[str, str]
) -> tuple[str, tuple[int, int]]:
    """The joint and the tokens of the answers after a text that ends in the start of the answer."""
    special = control_tokens(tokenizer)
    ways = [("", "")] if text[-1] in OPENING else [(" ", ""), ("", " ")]
    tried = [(joint, [_token(tokenizer, text + joint, space + word) for word in answers]) for space, joint in ways]
    for joint, (yes, no) in tried:
        if yes is not None and no is not None:
            if control := [word for word, number in zip(answers, (yes, no), strict=True) if number in special]:
                problem = f"data.answers: {control} are read as control tokens. Expected words."
                raise ConfigurationError([problem])
            if yes == no:
                raise ConfigurationError([f"data.answers: {answers} are the same token. Expected two different words."])
            return joint, (yes, no)
    fitting = [word for word in SUGGESTIONS if _token(tokenizer, text, ways[0][0] + word) is not None]
    bad = [word for place, word in enumerate(answers) if tried[0][1][place] is None]
    pieces = {
        word: tokenizer.convert_ids_to_tokens(tokenizer(ways[0][0] + word, add_special_tokens=False)["input_ids"])
        for word in bad
    }
    raise ConfigurationError(
        [
            f"data.answers: {word!r} is {len(pieces[word])} tokens after {start!r} ({pieces[word]}). Expected a word "
            f"of exactly one token, such as {', '.join(fitting)}."
            for word in bad
        ]
    )


def _token(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> int | None:
    """The one token that continues a text, or None if it is not one or changes the tokens before it."""
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text + continuation, add_special_tokens=False)["input_ids"]
    fits = continuation.strip() and whole[:-1] == before
    return int(whole[-1]) if fits else None
