"""Answer words: digits, either order, quotation marks, suggestions; questions and texts around them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.context import Context, Message, exchange
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.tasks.answer_tokens import find_answer_tokens, first_tokens
from introspection_lit.tasks.questions import QUESTION, builtin_questions, info_text, insert_answers
from introspection_lit.utils.errors import ConfigurationError

CONTEXT = exchange("chat", "Hello there", "Good day")


@pytest.fixture(scope="module")
def digits_apart(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer like Qwen's and SmolLM2's: every digit is a token of its own, without the space before it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    texts = ["The answer is yes", "The answer is no", "Hello there", "It is 1 or 0"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    fast.chat_template = tokenizer.chat_template
    return fast


def test_digits_get_the_space_that_stands_before_them(digits_apart: PreTrainedTokenizerFast) -> None:
    """The space is a token of its own there, and becomes part of what the model has said already."""
    phrasing, (one, zero) = find_answer_tokens(digits_apart, [], ["Did it?"], Phrasing(answers=("1", "0")))
    assert phrasing.joint == " "
    ids = encode(digits_apart, CONTEXT, "Did it?", phrasing).question_ids
    assert digits_apart.decode([*ids, one]).endswith("The answer is 1")
    assert digits_apart.decode([*ids, zero]).endswith("The answer is 0")
    whole = digits_apart(digits_apart.decode([*ids, one]), add_special_tokens=False)["input_ids"]
    assert whole[-len(ids) - 1 :] == [*ids, one]  # the model would have written exactly these
    assert find_answer_tokens(digits_apart, [], ["Did it?"], Phrasing())[0].joint == ""


def test_words_of_several_tokens_are_scored_by_their_first(digits_apart: PreTrainedTokenizerFast) -> None:
    """It is what the model would write after the answer prefix, in the whole answer encoded at once."""
    found = first_tokens(digits_apart, "Which one?", Phrasing(), ("yes", "yesterday", "no one"))
    assert found is not None
    ids = encode(digits_apart, CONTEXT, "Which one?", Phrasing()).question_ids
    for word, token in zip(found.words, found.ids, strict=True):
        whole = digits_apart(f"{digits_apart.decode(ids)} {word}", add_special_tokens=False)["input_ids"]
        assert whole[: len(ids) + 1] == [*ids, token], word
    assert first_tokens(digits_apart, "Which one?", Phrasing(), ("yes", "7 seas")) is None  # the space comes first


def test_either_order(tokenizer: PreTrainedTokenizerFast) -> None:
    """The first word is the one for steered, whichever it is."""
    _, (yes, no) = find_answer_tokens(tokenizer, [], ["Did it?"], Phrasing())
    assert find_answer_tokens(tokenizer, [], ["Did it?"], Phrasing(answers=("no", "yes")))[1] == (no, yes)


def test_no_space_after_a_quotation_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    """An answer that starts with a bracket goes on without a space, if the words are tokens that way."""
    asked = (Message("user", "Did it?"), Message("assistant", "{"))
    own = Context("own", (Message("user", "Hi"),), asked)
    phrasing, (a, b) = find_answer_tokens(tokenizer, [own], [], Phrasing(answers=("A", "B")))
    said = tokenizer.decode([*encode(tokenizer, own, None, phrasing).question_ids, a])
    assert said.replace(" ", "").endswith("{A")
    assert a != b


def test_conversations_that_disagree_are_refused(digits_apart: PreTrainedTokenizerFast) -> None:
    """The same word would be another token in one of them."""
    starts = ("It is", "It is (")
    own = [
        Context("own", (Message("user", "Hi"),), (Message("user", "?"), Message("assistant", start))) for start in starts
    ]
    with pytest.raises(ConfigurationError, match="are other tokens in some conversations"):
        find_answer_tokens(digits_apart, own, [], Phrasing(answers=("1", "0")))


def test_words_of_several_tokens_come_with_suggestions(tokenizer: PreTrainedTokenizerFast) -> None:
    """And only with words that this tokenizer has."""
    with pytest.raises(ConfigurationError) as caught:
        find_answer_tokens(tokenizer, [], ["Did it?"], Phrasing(answers=("affirmative", "no")))
    assert "such as yes, no" in str(caught.value)
    suggested = str(caught.value).split("such as ")[1].rstrip(".").split(", ")
    for word in suggested:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


def test_other_words_are_explained() -> None:
    """Yes and no explain themselves; other words, and these the other way round, are said to mean something."""
    assert builtin_questions([QUESTION], ("yes", "no")) == [
        "Was your internal state tampered with just now? Answer yes or no."
    ]
    explained = "Was your internal state tampered with just now? Answer {} if so and {} if not."
    for answers in (("no", "yes"), ("1", "0")):
        assert builtin_questions([QUESTION], answers) == [explained.format(*answers)]
    assert insert_answers(["Say {yes}, or {no}."], ("A", "B")) == ["Say A, or B."]


def test_info_texts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The neutral text is as long as the explanation, in this tokenizer's tokens, and explains nothing."""

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    explained, neutral = (info_text(choice, tokenizer) for choice in ("explained", "neutral"))
    assert length(explained) <= length(neutral) <= length(explained) + 8
    assert not {"layer", "layers", "keys", "attention", "vector", "stored"} & set(neutral.lower().split())
    assert info_text("none", tokenizer) == ""
    (tmp_path / "mine.txt").write_text(" Mine.\n")
    assert info_text(str(tmp_path / "mine.txt"), tokenizer) == "Mine."
    with pytest.raises(ConfigurationError, match=r"data.info: 'nosuch' cannot be read"):
        info_text("nosuch", tokenizer)
    asked = tokenizer.decode(encode(tokenizer, CONTEXT, "Did it?", Phrasing(info="Mine.")).question_ids)
    assert "Mine.\n\nDid it?" in asked
