"""Conversations of the user's own: files, the mark where steering ends, and the way through baseline, train and test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_scripts import GRID, options, script
from transformers import PreTrainedTokenizerFast

from introspection_lit.contexts.context import LARGE, Context, Message
from introspection_lit.contexts.conversations import Phrasing, encode, render
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.training.options import HELD_OUT_KINDS, DataOptions
from introspection_lit.utils.errors import ConfigurationError


def conversation(number: int = 0, **more: Any) -> dict:
    """A published prompt: empty system prompt, a placeholder for a reply, steered up to there."""
    return {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": f"Let us talk about number {number}."},
            {"role": "assistant", "content": "{ }", "steering_ends": True},
            {"role": "user", "content": "Was something added to you? Reply no or yes."},
            {"role": "assistant", "content": "My answer is"},
        ],
        **more,
    }


def write(path: Path, content: object) -> str:
    """A JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("shape", ["list of messages", "object", "list of objects", "conversations", "jsonl"])
def test_shapes_of_files(shape: str, tmp_path: Path) -> None:
    """One conversation or several, bare or with answers and a kind."""
    content: Any = {
        "list of messages": conversation()["messages"],
        "object": conversation(),
        "list of objects": [conversation()],
        "conversations": {"conversations": [conversation()["messages"]]},
        "jsonl": conversation(),
    }[shape]
    name = "file.jsonl" if shape == "jsonl" else "file.json"
    (context,) = load_contexts(write(tmp_path / name, content))
    roles = ["system", "user", "assistant"]
    assert [turn.role for turn in context.turns] == roles
    assert context.question_turns == (
        Message("user", "Was something added to you? Reply no or yes."),
        Message("assistant", "My answer is"),
    )


def test_it_is_asked_as_it_stands(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Template, boundary and tokens are those of the whole conversation; what is steered ends at the mark."""
    (context,) = load_contexts(write(tmp_path / "file.json", conversation()))
    phrasing = Phrasing(system="Not this one.")
    text, boundary = render(tokenizer, context, None, phrasing)
    messages = [{key: message[key] for key in ("role", "content")} for message in conversation()["messages"]]
    expected = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) + "My answer is"
    assert text == expected
    assert text[:boundary].rstrip().endswith("{ }<|im_end|>")
    encoded = encode(tokenizer, context, None, phrasing)
    assert encoded.context_ids + encoded.question_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "Another question?" in render(tokenizer, context, "Another question?", phrasing)[0]


def test_steering_may_end_with_a_user_message(tokenizer: PreTrainedTokenizerFast) -> None:
    """The reply to it is then clean, and part of the question."""
    turns = (Message("user", "First"),)
    asked = (Message("assistant", "Second"), Message("user", "Third?"))
    encoded = encode(tokenizer, Context("own", turns, asked), None, Phrasing())
    first, second = tokenizer.decode(encoded.context_ids), tokenizer.decode(encoded.question_ids)
    assert "First" in first
    assert "Second" not in first
    assert second.index("Second") < second.index("Third?") < second.index("The answer is")


def changed(number: int, **fields: Any) -> dict:
    """A conversation with one message changed."""
    made = conversation()
    made["messages"][number] |= fields
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(2, steering_ends=False), "expected one message with .*, got 0"),
        (changed(1, steering_ends=True), "got 2"),
        (changed(0, role="narrator"), "message 1: expected a role"),
        (changed(3, content=["text"]), "message 4: its content has a part of type 'str'"),
        (changed(3, continue_msg=True), 'message 4 has "continue_msg": true. Expected it on the last message'),
        (changed(1, add_injection=True), 'both "steering_ends" and "add_injection"'),
        (conversation(yes_token=" no"), "both 'yes_token' and 'no_token'"),
        (conversation(answers=["no", "yes"], yes_token=" yes", no_token=" no"), "Expected the same words"),
        (changed(3, role="system"), "expected the question, a user message, after"),
        (
            {"messages": [{"role": "system", "content": "x", "steering_ends": True}, {"role": "user", "content": "?"}]},
            "no text",
        ),
        (conversation(answers=["yes"]), "'answers' to be two texts"),
        (conversation(answers="yes"), "'answers' to be two texts"),
        ([], "holds no context"),
        ("text", "expected an object"),
        ([[1, 2]], "expected"),
    ],
)
def test_bad_conversations_are_refused(content: object, message: str, tmp_path: Path) -> None:
    """Each is named with its number in the file."""
    with pytest.raises(ConfigurationError, match=message):
        load_contexts(write(tmp_path / "file.json", content))


def test_damaged_json_is_refused(tmp_path: Path) -> None:
    """Cut off in the middle."""
    (tmp_path / "file.json").write_text(json.dumps(conversation())[:50])
    with pytest.raises(ConfigurationError, match="not JSON"):
        load_contexts(str(tmp_path / "file.json"))


# As a configuration for the packaged contexts may name them.
EXPERIMENT = [
    f"--data.{option}={json.dumps(kinds)}"
    for option, kinds in zip(("validation_kinds", "test_kinds"), HELD_OUT_KINDS[LARGE], strict=True)
]


@pytest.mark.parametrize("form", ["in full", "published"])
def test_one_conversation_is_enough_for_the_baseline(form: str, tiny: Path, tmp_path: Path) -> None:
    """The kinds that the experiment holds out are those of the packaged contexts: they were asked of the user's file."""
    content = conversation(99, answers=["no", "yes"], kind="placeholder")
    if form == "published":
        content = {"label": "river", "yes_token": " no", "no_token": " yes", "messages": content["messages"]}
        del content["messages"][2]["steering_ends"]
        for number, mark in ((1, "add_injection"), (2, "add_injection"), (4, "continue_msg")):
            content["messages"][number][mark] = True
    one = write(tmp_path / "one.json", content)
    script("baseline_benchmark").main(
        [
            *options(tiny, tmp_path),
            *GRID[:2],
            "--conversations",
            one,
            "--data.concepts",
            '["bread","cats","ice"]',
            *EXPERIMENT,
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "baseline-one.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"placeholder" if form == "in full" else "river"}
    assert {row["question_text"] for row in rows if row["role"] == "detection"} == {
        "Was something added to you? Reply no or yes."
    }
    assert json.loads((tmp_path / "baseline-one.json").read_text())["answers"] == ["no", "yes"]


def test_held_out_kinds_that_a_file_of_ones_own_lacks(tmp_path: Path) -> None:
    """Those of the packaged contexts are dropped, and test sets of unseen kinds with the last of them; others are kept."""
    held_out = {"validation_kinds": ["csv"], "test_kinds": ["rust", "logs"], "test_trials": {"seen": 2, "long_newkinds": 2}}
    given = DataOptions(str(tmp_path / "mine.jsonl"), **held_out)  # type: ignore[arg-type]
    made, notes = given.for_own_contexts({"mine"})
    assert (made.held_out_kinds, made.test_sets) == (([], []), ["seen"])
    assert "mine.jsonl does not have: csv, rust, logs" in notes[0]
    assert "the test sets long_newkinds: no kind is held out of mine.jsonl" in notes[1]
    made, notes = given.for_own_contexts({"mine", "logs"})
    assert (made.held_out_kinds, made.test_sets, len(notes)) == (([], ["logs"]), ["seen", "long_newkinds"], 1)
    assert given.for_own_contexts({"mine"}, {"other"})[0].test_sets == ["seen", "long_newkinds"]
    assert given.for_own_contexts({"mine"}, {"mine"})[0].test_sets == ["seen"]  # would be no unseen kind
    mistyped = DataOptions("mine.jsonl", test_kinds=["pyhton"])
    assert mistyped.for_own_contexts({"python"}) == (mistyped, [])
    assert DataOptions("mine.jsonl").for_own_contexts({"a"})[0].test_sets == ["seen", "heldout", "concept"]
    assert DataOptions(test_kinds=["rust"]).for_own_contexts({"a"})[1] == []  # packaged contexts have their kinds


@pytest.mark.slow
def test_baseline_train_and_test_run_on_them(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single one through the baseline; a file of them through training and test; one more as test contexts only."""
    one = write(tmp_path / "one.json", conversation(99, answers=["no", "yes"]))
    shared = options(tiny, tmp_path)
    script("baseline_benchmark").main(
        [*shared, *GRID[:2], "--conversations", one, "--data.concepts", '["bread","cats","music"]']
    )
    rows = [json.loads(line) for line in (tmp_path / "baseline-one.jsonl").read_text().splitlines()]
    assert {row["question_text"] for row in rows if row["role"] == "detection"} == {
        "Was something added to you? Reply no or yes."
    }
    assert json.loads((tmp_path / "baseline-one.json").read_text())["answers"] == ["no", "yes"]
    assert any("Answer no if so and yes if not" in row["question_text"] for row in rows)  # the control questions

    many = write(tmp_path / "many.json", [conversation(number, answers=["no", "yes"]) for number in range(24)])
    sets = ["--data.test_trials", '{"seen": 4, "heldout": 4, "concept": 4, "newkinds": 4}', *EXPERIMENT]
    mine = [*shared, "--conversations", many, *sets]
    script("generate_vectors").main([*shared, "--conversations", many, "--n-random", "8"])
    script("generate_training_data").main([*mine, "--n-examples", "12"])
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[1])
    assert first["question"] == "Was something added to you? Reply no or yes."
    script("finetune").main([*mine, "--epochs", "1", "--grad-accum", "1", "--output", str(tmp_path / "checkpoints")])
    adapter = ["--adapter", str(tmp_path / "checkpoints" / "best")]
    script("evaluate").main([*mine, *adapter, "--data.test_contexts", one])
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert ladder["answers"] == ["no", "yes"]
    assert all(row["n_clean_distinct"] == 1 for row in ladder["ways"]["adapter"].values())
    capsys.readouterr()
    # What was trained on is no test.
    with pytest.raises(SystemExit):
        script("evaluate").main([*mine, *adapter, "--data.test_contexts", many])
    assert "is in more than one split" in capsys.readouterr().err


def test_answers_that_contradict_the_file_are_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The question in the file asks for its own words."""
    one = write(tmp_path / "one.json", conversation(answers=["no", "yes"]))
    with pytest.raises(SystemExit):
        script("baseline_benchmark").main([*options(tiny, tmp_path), "--conversations", one, "--answers", "yes", "no"])
    assert "the conversations name the answers ['no', 'yes'], the configuration ['yes', 'no']" in capsys.readouterr().err
