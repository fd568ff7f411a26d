"""The shipped contexts, loading of others, and splits without leaks."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from damage import nested_too_deeply
from project_paths import ROOT

from introspection_lit.contexts.context import BUILTIN, Context, Message, exchange
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.splits import shared_messages, split_contexts
from introspection_lit.training.options import TEST_KINDS, VALIDATION_KINDS
from introspection_lit.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def builtin() -> list[Context]:
    """The contexts that come with the package."""
    return load_contexts(BUILTIN)


def write_rows(path: Path, rows: list) -> str:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_shipped_set_is_large_and_diverse(builtin: list[Context]) -> None:
    """At least 600 contexts of 16 kinds, none twice, enough of each held-out kind for 300 distinct clean inputs."""
    kinds = Counter(context.kind for context in builtin)
    assert len(builtin) >= 600
    assert len(kinds) >= 16
    assert min(kinds.values()) >= 20
    assert len({context.key for context in builtin}) == len(builtin)
    assert sum(kinds[kind] for kind in TEST_KINDS) >= 300
    assert set(VALIDATION_KINDS) <= set(kinds)


def test_splits_are_disjoint_and_complete(builtin: list[Context]) -> None:
    """Every context is in exactly one split; test kinds are in none but their own."""
    splits = split_contexts(builtin, 0, VALIDATION_KINDS, TEST_KINDS)
    assert sorted(c.key for part in splits.values() for c in part) == sorted(c.key for c in builtin)
    assert shared_messages(splits) == []
    assert {c.kind for c in splits["newkinds"]} == set(TEST_KINDS)
    for name in ("train", "seen", "heldout", "concept"):
        assert not {c.kind for c in splits[name]} & {*TEST_KINDS, *VALIDATION_KINDS}
    assert set(VALIDATION_KINDS) < {c.kind for c in splits["validation"]}


def test_split_depends_on_the_seed_not_on_the_order(builtin: list[Context]) -> None:
    """The same seed deals the same way whatever order the file has; another seed deals differently."""
    first = split_contexts(builtin, 0, (), ())
    again = split_contexts(list(reversed(builtin)), 0, (), ())
    other = split_contexts(builtin, 1, (), ())
    assert first == again
    assert first["train"] != other["train"]


def test_same_user_message_never_crosses_splits() -> None:
    """Twenty prompts with five replies each: the replies to one prompt stay together, across kinds too."""
    contexts = [exchange(kind, f"prompt {i}", f"{kind} reply {j}") for kind in "ab" for i in range(20) for j in range(5)]
    splits = split_contexts(contexts, 0, (), ())
    assert shared_messages(splits) == []
    assert sum(map(len, splits.values())) == 100


def test_shared_messages_finds_a_leak_despite_case_and_space() -> None:
    """The proof of disjointness can fail."""
    splits = {"train": [exchange("a", "Hello  there", "x")], "heldout": [exchange("b", "hello There", "y")]}
    assert len(shared_messages(splits)) == 1


@pytest.mark.parametrize(
    ("kinds", "message"),
    [((("nosuch",), ()), "no context is of kind 'nosuch'"), ((("rust",), ("rust",)), "in validation_kinds too")],
)
def test_wrong_kinds_are_refused(builtin: list[Context], kinds: tuple, message: str) -> None:
    """A misspelt kind would silently be trained on."""
    with pytest.raises(ConfigurationError, match=message):
        split_contexts(builtin, 0, *kinds)


def test_keys_tell_texts_apart() -> None:
    """Whatever signs they hold; case and white space make no difference."""
    parts = ["a", "b", "\0", "\1", "\2"]
    texts = ["".join(text) for length in (1, 2) for text in product(parts, repeat=length)]
    pairs = [(f"x{first}", f"{second}x") for first, second in product(texts, repeat=2)]
    assert len({exchange("chat", *pair).key for pair in pairs}) == len(pairs)
    assert exchange("chat", "A  b", "c").key == exchange("chat", "a b\n", "C").key


def test_own_jsonl_in_both_forms(tmp_path: Path) -> None:
    """user/assistant rows and message lists, with their system messages; repeats are dropped; kind is optional."""
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    rows = [{"kind": "k", "user": "u", "assistant": "r"}, {"messages": messages}, {"user": "U", "assistant": "R"}]
    contexts = load_contexts(write_rows(tmp_path / "own.jsonl", rows))
    with_system = exchange("unlabelled", "q", "a")
    with_system = replace(with_system, turns=(Message("system", "s"), *with_system.turns))
    assert contexts == [exchange("k", "u", "r"), with_system]


def test_hub_data_set_by_name(tmp_path: Path) -> None:
    """The loader goes through the datasets library, which takes a local folder where it takes a hub name."""
    write_rows(tmp_path / "train.jsonl", [{"kind": "k", "user": f"u{i}", "assistant": "r"} for i in range(3)])
    assert [context.user for context in load_contexts(f"hub:{tmp_path}")] == ["u0", "u1", "u2"]
    with pytest.raises(ConfigurationError, match="could not be loaded"):
        load_contexts(f"hub:{tmp_path}:nosuchsplit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no context"),
        ("{oops\n", "line 1: not JSON"),
        ('{"user": "u"}\n', "line 1: expected non-empty strings"),
        ("[1]\n", "expected an object, got list"),
        ('{"user": "u", "assistant": " "}\n', "expected non-empty strings"),
        ('{"messages": [{"role": "user", "content": 3}]}\n', "expected a 'user' message"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    """What was given, where."""
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_contexts(str(path))


def test_deep_nesting_names_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's parser gives up at some depth, with an error that is none of JSON's."""
    (tmp_path / "deep.jsonl").write_text("[[]]\n")
    (tmp_path / "deep.json").write_text("[[]]")
    nested_too_deeply(monkeypatch)
    for name in ("deep.jsonl", "deep.json"):
        with pytest.raises(ConfigurationError, match="not JSON"):
            load_contexts(str(tmp_path / name))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    """A path that does not exist, and a file that is not text."""
    with pytest.raises(ConfigurationError, match="no such file"):
        load_contexts(str(tmp_path / "missing.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_contexts(str(tmp_path / "binary.jsonl"))


def test_message_lists_begin_at_the_first_user(tmp_path: Path) -> None:
    """A greeting before it is dropped; a user without a reply is no context. A byte-order mark is none of our business."""
    greeting = {"role": "assistant", "content": "Hello!"}
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write_rows(tmp_path / "own.jsonl", [{"messages": [greeting, *asked, asked[0]]}])
    Path(path).write_text(Path(path).read_text(), encoding="utf-8-sig")
    assert load_contexts(path) == [exchange("unlabelled", "q", "a")]
    with pytest.raises(ConfigurationError, match="an 'assistant' reply right after it"):
        load_contexts(write_rows(tmp_path / "bad.jsonl", [{"messages": [asked[0], asked[0]]}]))


def test_all_bad_rows_are_named_up_to_ten(tmp_path: Path) -> None:
    """A file of a thousand bad rows does not print a thousand lines."""
    path = write_rows(tmp_path / "bad.jsonl", [{}] * 1000)
    with pytest.raises(ConfigurationError) as error:
        load_contexts(path)
    assert len(error.value.problems) == 11
    assert "990 more" in error.value.problems[-1]


def test_script_looks_a_set_over(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kinds, counts, lengths and shared messages of a file; a clean error for one that is not there."""
    script = runpy.run_path(str(ROOT / "scripts" / "check_contexts.py"))
    rows = [{"kind": kind, "user": f"{kind} {i}", "assistant": "r"} for kind in ("apple", "pear") for i in range(3)]
    rows += [{"kind": kind, "user": "same", "assistant": kind} for kind in ("apple", "pear")]
    script["main"]([write_rows(tmp_path / "own.jsonl", rows), "--model", str(tiny)])
    printed = capsys.readouterr().out
    assert "8 contexts of 2 kinds" in printed
    assert "share: 1 [['apple', 'pear']]" in printed
    with pytest.raises(SystemExit):
        script["main"](["nowhere.jsonl"])
    assert "no such file: nowhere.jsonl" in capsys.readouterr().err
