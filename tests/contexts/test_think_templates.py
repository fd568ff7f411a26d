"""Chat templates of reasoning models: replies rendered otherwise once others follow, open think blocks, channels."""

from __future__ import annotations

import pytest
from chat_styles import STYLES, tokenizer_of
from tiny_models import train_tokenizer
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.answer_opening import AS_PROMPTED, Opening, find_opening, open_block
from introspection_lit.contexts.context import Context, Message, exchange
from introspection_lit.contexts.conversations import Phrasing, encode, render
from introspection_lit.tasks.questions import QUESTION

CONTEXT = exchange("chat", "How are you?", "Fine, thanks.")
LONGER = Context("chat", (*CONTEXT.turns, Message("user", "And now?"), Message("assistant", "Still fine.")))


def whole(tokenizer: PreTrainedTokenizerFast, context: Context) -> str:
    """The conversation as the template itself writes it, up to its generation prompt."""
    turns = [("system", ""), *context.turns, ("user", QUESTION)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("context", [CONTEXT, LONGER], ids=["one exchange", "two"])
@pytest.mark.parametrize("name", ["thinks", "opens", "channels"])
def test_the_whole_is_what_the_model_sees(name: str, context: Context) -> None:
    """It is cut after the last reply, and the answer starts where the template starts one."""
    tokenizer, style = tokenizer_of(name), STYLES[name]
    text, boundary = render(tokenizer, context, QUESTION, Phrasing())
    rendered = whole(tokenizer, context)
    assert rendered.startswith(text[:boundary])
    assert text.startswith(rendered[: rendered.rindex(QUESTION) + len(QUESTION)])
    assert text.endswith(f"{style.start}The answer is")
    first = style.rendered([("system", ""), *context.turns])
    assert text[:boundary] in (first, first.removesuffix("<|end|>") + "<|")  # of another end nothing is steered
    encoded = encode(tokenizer, context, QUESTION, Phrasing())
    assert tokenizer.decode(encoded.context_ids + encoded.question_ids) == text


def test_an_answer_may_start_inside_of_thoughts() -> None:
    """The other choice: right after the generation prompt. A channel is no thought."""
    starts = {
        "thinks": "<|im_start|>assistant\nThe answer is",
        "opens": "<|Assistant|><think>\nThe answer is",
        "channels": "<|start|>assistant<|channel|>final<|message|>The answer is",
    }
    for name, start in starts.items():
        text, _ = render(tokenizer_of(name), CONTEXT, QUESTION, Phrasing(thinking="open"))
        assert text.endswith(start)
        assert "</think>" not in text


def test_kept_think_blocks_are_part_of_the_context() -> None:
    """A template that writes empty blocks into all replies: they are steered with the rest."""
    tokenizer = train_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{% endif %}"
    )
    text, boundary = render(tokenizer, CONTEXT, QUESTION, Phrasing())
    assert text[:boundary].endswith("assistant\n<think></think>Fine, thanks.<|im_end|>\n")
    assert text.endswith("assistant\n<think></think>The answer is")  # not an open one that is then closed


def test_an_empty_reply_is_cut_like_one_with_text() -> None:
    """The detector asks about a single message so: nothing of the reply shows where it ends."""
    text, boundary = render(tokenizer_of("thinks"), exchange("chat", "Hi.", ""), QUESTION, Phrasing())
    assert text[:boundary].endswith("<|im_start|>assistant\n<|im_end|>\n")


@pytest.mark.parametrize(
    ("prompt", "reply", "off", "closed", "expected"),
    [
        ("<A>", "<A>", [], True, AS_PROMPTED),
        ("[/INST]", "[/INST] ", [], True, AS_PROMPTED),  # white space belongs to the reply
        ("", "<A>\n", [], True, Opening("", "<A>\n")),  # a template without a generation prompt
        ("<A>", None, [], True, AS_PROMPTED),
        ("<A>", "<B>", [], True, AS_PROMPTED),
        ("<A><think>\n", "<A>", [], True, Opening("", "\n</think>\n\n")),
        ("<A><think>", "<A>", [], True, Opening("", "</think>")),
        ("<A>[THINK]", "<A>", [], True, Opening("", "[/THINK]")),
        ("<A><think>\n", "<A><think>\n\n</think>\n\n", [], True, Opening("", "\n</think>\n\n")),
        ("<A><think>\n", "<A>", ["<A><think></think>"], True, Opening("<think>\n", "<think></think>")),
        ("<A><think>\n", "<A>", ["<A>"], True, Opening("<think>\n", "")),  # without a block: its own way
        ("<A><think>\n", "<A>", ["<A><think>\n"], True, Opening("", "\n</think>\n\n")),
        ("<A><think>\n", "<A>", ["<A><think></think>"], False, AS_PROMPTED),
        ("<A>", "<A><think></think>", [], False, AS_PROMPTED),
        ("<A></think>", "<A></think>", [], True, AS_PROMPTED),
    ],
)
def test_where_an_answer_starts(prompt: str, reply: str | None, off: list[str], closed: bool, expected: Opening) -> None:
    """By what the template writes before replies, and without thoughts."""
    assert find_opening(prompt, reply, off, closed) == expected
    done = expected.complete(f"Q{prompt}")
    assert not closed or open_block(done) is None


def test_messages_that_templates_lose_are_named() -> None:
    """A system prompt that moves behind the context, a developer message that is dropped: the way out is a template."""
    late = train_tokenizer(
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}"
        "{% elif m.role == 'user' %}[INST] {{ ns.s if loop.last else '' }}{{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert render(late, CONTEXT, QUESTION, Phrasing())[0].endswith("[/INST]The answer is")
    with pytest.raises(ValueError, match=r"data\.system_prompt: .*behind the context.*data\.chat_template"):
        render(late, CONTEXT, QUESTION, Phrasing(system="Be brief."))
    developer = Context("chat", (Message("developer", "Be brief."), *CONTEXT.turns))
    with pytest.raises(ValueError, match=r"drops a developer message.*'Be brief\.'.*data\.chat_template"):
        render(late, developer, QUESTION, Phrasing())


def test_a_developer_message_may_stand_for_the_system_prompt() -> None:
    """A template that takes one of them, at the beginning; and one that takes any role."""
    first_only = train_tokenizer(
        "{% for m in messages %}{% if loop.first or m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    developer = Context("chat", (Message("developer", "Be brief."), *CONTEXT.turns))
    text, _ = render(first_only, developer, QUESTION, Phrasing())
    assert text.startswith("<|im_start|>developer\nBe brief.<|im_end|>\n<|im_start|>user")
    text, _ = render(tokenizer_of("chatml"), developer, QUESTION, Phrasing())
    assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>developer\nBe brief.<|im_end|>")
