"""The token of each answer word at the position where it is scored, right after the answer prefix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from introspection_lit.contexts.chat_templates import control_tokens
from introspection_lit.contexts.context import Context, exchange
from introspection_lit.contexts.conversations import Phrasing, render
from introspection_lit.contexts.usable import control_token_problems
from introspection_lit.tasks.task import AnswerWords
from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Stands for any context without a question of its own: the tokens of an answer do not depend on the context.
SAMPLE_CONTEXT = exchange("probe", "Hello", "Hello")
# Suggested in place of a word of several tokens, if they are one token each.
SUGGESTIONS = ("yes", "no", "true", "false", "on", "off", "red", "blue", "left", "right", "A", "B", "1", "0")
# After one of these characters a word follows without a space.
OPENING = "\"'([{<«“`"


def find_answer_tokens(
    tokenizer: PreTrainedTokenizerBase, contexts: Iterable[Context], questions: Sequence[str], phrasing: Phrasing
) -> tuple[Phrasing, tuple[int, int]]:
    """Find the token of each answer word right after the answer prefix.

    Most tokenizers write a word with the space before it as one token. Some write the space before a digit as a token of
    its own: it then becomes part of the prefix (``joint``). After a quotation mark or bracket there is no space.

    Args:
        tokenizer: The model's.
        contexts: Only those with an answer prefix of their own are used.
        questions: The configured questions.
        phrasing: The answer words and the answer prefix.

    Returns:
        The phrasing with the ``joint`` that the words need, and the token ids of "steered" and "not steered".

    Raises:
        ConfigurationError: A word is not exactly one token, both are the same token, or conversations disagree.
    """
    if not all(word.strip() for word in phrasing.answers):
        raise ConfigurationError([f"data.answers: got an empty word in {list(phrasing.answers)}. Expected two words."])
    if problems := control_token_problems(tokenizer, phrasing.answers, "data.answers"):
        raise ConfigurationError(problems)
    if not phrasing.answer_prefix.strip():
        raise ConfigurationError(
            ["data.answer_prefix: got none. Expected the start of an answer, such as 'The answer is'."]
        )
    own = {
        (context.question_turns[-1].content, context)
        for context in contexts
        if context.question_turns and context.question_turns[-1].role != "user"
    }
    cases: list[tuple[Context, str | None]] = [(SAMPLE_CONTEXT, question) for question in questions[:1]]
    cases += [(context, None) for context in dict(own).values()]
    tokens = {}
    for context, question in cases:
        prefix = phrasing.answer_prefix if question is not None else context.question_turns[-1].content
        if prefix != prefix.rstrip() or not prefix:
            ending = "ends in white space, which the model would then write twice" if prefix else "is empty"
            where = "data.answer_prefix" if question is not None else "data.contexts: the start of an answer"
            raise ConfigurationError([f"{where}: {prefix!r} {ending}. Expected something like 'The answer is'."])
        text, _ = render(tokenizer, context, question, phrasing)
        tokens[prefix] = _tokens_after(tokenizer, text, prefix, phrasing.answers)
    if len(set(tokens.values())) > 1:
        raise ConfigurationError(
            [
                f"data.contexts: the answers {phrasing.answers} are other tokens in some conversations than in others: "
                f"their answers start differently ({', '.join(map(repr, tokens))}). Expected one way of "
                "starting the answer, such as 'The answer is', or data.answer_prefix to be like it."
            ]
        )
    joint, (yes, no) = next(iter(tokens.values()))
    return replace(phrasing, joint=joint), (yes, no)


def _tokens_after(
    tokenizer: PreTrainedTokenizerBase, text: str, prefix: str, answers: tuple[str, ...]
) -> tuple[str, tuple[int, ...]]:
    """The joint and the token ids of the answers after a text that ends in the answer prefix."""
    control = control_tokens(tokenizer)
    spacings = [("", "")] if text[-1] in OPENING else [(" ", ""), ("", " ")]  # before the word, or part of the prefix
    candidates = [(joint, [_token(tokenizer, text + joint, space + word) for word in answers]) for space, joint in spacings]
    for joint, tokens in candidates:
        ids = tuple(token for token in tokens if token is not None)
        if len(ids) == len(answers):
            if words := [word for word, token in zip(answers, ids, strict=True) if token in control]:
                raise ConfigurationError([f"data.answers: {words} are read as control tokens. Expected words."])
            if len(set(ids)) < len(ids):
                raise ConfigurationError([f"data.answers: {answers} are the same token. Expected two different words."])
            return joint, ids
    space, tokens = spacings[0][0], candidates[0][1]
    suggestions = [word for word in SUGGESTIONS if _token(tokenizer, text, space + word) is not None]
    pieces = {
        word: tokenizer.convert_ids_to_tokens(tokenizer(space + word, add_special_tokens=False)["input_ids"])
        for word, token in zip(answers, tokens, strict=True)
        if token is None
    }
    raise ConfigurationError(
        [
            f"data.answers: {word!r} is {len(parts)} tokens after {prefix!r} ({parts}). Expected a word "
            f"of exactly one token, such as {', '.join(suggestions)}."
            for word, parts in pieces.items()
        ]
    )


def _token(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> int | None:
    """The single token that continues a text; None if there are several, or if the tokens before it change."""
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    after = tokenizer(text + continuation, add_special_tokens=False)["input_ids"]
    is_single = continuation.strip() and after[:-1] == before
    return int(after[-1]) if is_single else None


def first_tokens(
    tokenizer: PreTrainedTokenizerBase, question: str, phrasing: Phrasing, words: tuple[str, ...]
) -> AnswerWords | None:
    """Words of any number of tokens as answers, each scored by its first token right after the answer prefix.

    Args:
        tokenizer: The model's.
        question: Any question.
        phrasing: System prompt and answer prefix.
        words: The words; some may begin with the same token.

    Returns:
        The words with these tokens; None if a word changes the tokens before it.
    """
    text, _ = render(tokenizer, SAMPLE_CONTEXT, question, replace(phrasing, joint=""))
    space = "" if text[-1] in OPENING else " "
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    continued = [tokenizer(f"{text}{space}{word}", add_special_tokens=False)["input_ids"] for word in words]
    ids = tuple(int(tokens[len(before)]) for tokens in continued if tokens[: len(before)] == before)
    usable = len(ids) == len(words) and all(tokenizer.decode([token]).strip() for token in ids)
    return AnswerWords(words, ids) if usable else None


def usable_words(
    tokenizer: PreTrainedTokenizerBase, question: str, phrasing: Phrasing, groups: Iterable[tuple[str, ...]]
) -> tuple[AnswerWords, ...]:
    """The groups of answer words that are one token each, with these tokens; the others are left out.

    Args:
        tokenizer: The model's.
        question: Any question.
        phrasing: System prompt and answer prefix.
        groups: Groups of words that answer the same question, such as pairs.
    """
    text, _ = render(tokenizer, SAMPLE_CONTEXT, question, replace(phrasing, joint=""))
    usable = []
    for words in groups:
        with suppress(ConfigurationError):
            joint, ids = _tokens_after(tokenizer, text, phrasing.answer_prefix, words)
            usable.append(AnswerWords(words, ids, joint))
    return tuple(usable)
