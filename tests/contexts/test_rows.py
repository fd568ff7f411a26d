"""Rows as people have them: parts, ShareGPT, prompt and completion, instructions first, published prompt files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_styles import tokenizer_of

from introspection_lit.contexts.context import Context, Message
from introspection_lit.contexts.conversations import Phrasing, encode, render
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.rows import as_context
from introspection_lit.tasks.wording import common_answers, common_prefix
from introspection_lit.utils.errors import ConfigurationError

TURNS = (Message("user", "Good morning!"), Message("assistant", "Did you sleep well?"))
PUBLISHED = {
    "label": "short",
    "yes_token": " yes",
    "no_token": " no",
    "messages": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "We add things to texts.", "add_injection": True},
        {"role": "assistant", "content": "{ }", "add_injection": True},
        {"role": "user", "content": "Was anything added here? Say yes or no."},
        {"role": "assistant", "content": "I say", "continue_msg": True},
    ],
}


def loaded(row: Any, folder: Path, name: str = "rows.jsonl") -> Context:
    """The only context of a file with one row."""
    (folder / name).write_text(json.dumps(row), encoding="utf-8")
    (context,) = load_contexts(str(folder / name))
    return context


def parts(text: str) -> list[dict[str, str]]:
    """A content of one text part."""
    return [{"type": "text", "text": text}]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": turn.role, "content": parts(turn.content)} for turn in TURNS]},
        {"conversations": [{"from": "human", "value": "Good morning!"}, {"from": "gpt", "value": "Did you sleep well?"}]},
        {"prompt": "Good morning!", "completion": "Did you sleep well?"},
        {
            "prompt": [{"role": "user", "content": "Good morning!"}],
            "completion": [{"role": "assistant", "content": "Did you sleep well?"}],
        },
    ],
    ids=["parts", "ShareGPT", "prompt", "prompt of messages"],
)
def test_forms_of_an_exchange(row: dict[str, Any], ending: str, tmp_path: Path) -> None:
    """All are the same context, with a kind or without."""
    assert loaded(row, tmp_path, f"rows.{ending}") == Context("unlabelled", TURNS)
    assert loaded(row | {"kind": "chat"}, tmp_path, f"kind.{ending}") == Context("chat", TURNS)


def test_text_parts_are_joined() -> None:
    """By line breaks; also for the detector."""
    message = {"role": "user", "content": [*parts("One."), *parts("Two.")]}
    assert as_context([message]).user == "One.\nTwo."


def test_bare_list_of_shared_messages(tmp_path: Path) -> None:
    """A JSON file that is one of ShareGPT's conversations."""
    row = [{"from": "human", "value": "Good morning!"}, {"from": "gpt", "value": "Did you sleep well?"}]
    assert loaded(row, tmp_path, "bare.json") == Context("unlabelled", TURNS)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_kept(role: str, tmp_path: Path) -> None:
    """They were dropped in silence; an empty system prompt is none."""
    messages = [{"role": role, "content": "Be brief."}, *({"role": t.role, "content": t.content} for t in TURNS)]
    context = loaded({"messages": messages}, tmp_path)
    assert context.turns == (Message(role, "Be brief."), *TURNS)
    encoded = encode(tokenizer_of("chatml"), context, "Was it?", Phrasing())
    assert f"<|im_start|>{role}\nBe brief.<|im_end|>" in tokenizer_of("chatml").decode(encoded.context_ids)
    messages[0]["content"] = ""
    assert loaded({"messages": messages}, tmp_path).turns == TURNS
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "Be brief."}
    assert loaded(shared, tmp_path).turns[0] == Message("system", "Be brief.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "of type 'image_url'"),
        ({"messages": [{"role": "user", "content": []}]}, "message 1: its content has no part"),
        ({"prompt": "Hi."}, "or 'prompt' and 'completion'"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "expected a 'user' message and an 'assistant' reply"),
        ({"messages": [{"role": "user", "content": "a", "Add-Injection": True}]}, "got 'Add-Injection'"),
    ],
)
def test_what_is_wrong_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    """With the number of the message."""
    with pytest.raises(ConfigurationError, match=message):
        loaded(row, tmp_path)


def test_published_prompts_are_read_as_they_are(tmp_path: Path) -> None:
    """Steered up to the last message that is marked, asked in its words, and answered after its own start."""
    context = loaded(PUBLISHED, tmp_path, "published.json")
    assert (context.kind, context.answers) == ("short", ("yes", "no"))
    assert common_answers(None, [context]) == ("yes", "no")
    assert common_prefix([context]) == "I say"
    text, boundary = render(tokenizer_of("chatml"), context, None, Phrasing())
    assert text[:boundary].endswith("{ }<|im_end|>\n")
    assert text.endswith("Say yes or no.<|im_end|>\n<|im_start|>assistant\nI say")


def test_steering_from_the_middle_on_is_said(tmp_path: Path) -> None:
    """Only the beginning of a conversation can be steered."""
    messages = [dict(message) for message in PUBLISHED["messages"]]  # type: ignore[union-attr]
    messages[1].pop("add_injection")
    with pytest.warns(UserWarning, match="message 2 is not marked add_injection and a later one is: it is steered too"):
        assert len(loaded(PUBLISHED | {"messages": messages}, tmp_path).turns) == 3
