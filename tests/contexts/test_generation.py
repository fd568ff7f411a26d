"""The larger set of contexts, and texts made odd."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_scripts import script
from transformers import PreTrainedTokenizerBase

from introspection_lit.contexts.context import BUILTIN, Context, exchange, fingerprint
from introspection_lit.contexts.generation.passages import bytecode, cut, headers, licence_files, unicode_names
from introspection_lit.contexts.generation.sentences import compose, fill_template, patterns
from introspection_lit.contexts.generation.sources import MOST_ALIKE, NEW, UNSEEN, draw_contexts, repetition, words
from introspection_lit.contexts.generation.written import model_written, requests, sample
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.contexts.odd_text import ODD, make_odd, typos
from introspection_lit.contexts.splits import shared_messages, split_contexts
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.loading import load_model
from introspection_lit.utils.cache_option import cache_option
from introspection_lit.utils.errors import ConfigurationError

build_contexts = script("build_contexts")
VALIDATION = ("csv", "dutch", "java", "reviews")
PER_KIND = 50
TEXT = "Rivers carry minerals from rocks into the ocean, slowly.\nWater evaporates; the salt stays behind, doesn't it?"


@pytest.fixture(scope="module")
def built() -> list[Context]:
    """Some contexts more of each unseen kind, however long."""
    return build_contexts.build(lambda context: len(context.turns[1].content) < 500, PER_KIND, 0)[1]


@pytest.fixture(scope="module")
def by_kind(built: list[Context]) -> dict[str, list[Context]]:
    """The same by kind."""
    return {kind: [context for context in built if context.kind == kind] for kind in (*UNSEEN, *NEW)}


@pytest.mark.slow
def test_file_and_companion(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The built-in rows unchanged and exactly enough others; same seed same bytes."""
    monkeypatch.setattr(build_contexts, "load_tokenizer", lambda _: tokenizer)
    out, options = tmp_path / "deep" / "large.jsonl", ["--per-kind", "46", "--limit", "400"]
    build_contexts.main(["--out", str(out), *options])
    contexts = load_contexts(str(out))
    text = out.read_bytes()
    builtin = load_contexts(BUILTIN)
    assert contexts[: len(builtin)] == builtin
    assert len(contexts) == len(text.decode().split("\n")) - 1  # no row refused, none an exact repeat
    counts = Counter(context.kind for context in contexts)
    assert {kind: counts[kind] for kind in (*UNSEEN, *NEW)} == dict.fromkeys((*UNSEEN, *NEW), 46)
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(text).hexdigest()
    assert facts["counts"]["rust"] == {"builtin": 44, "added": 2}
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # the rest names the build
    assert "filling rust" in capsys.readouterr().out
    assert [path.name for path in sorted(out.parent.iterdir())] == ["large.json", "large.jsonl"]

    again = tmp_path / "again.jsonl"
    build_contexts.main(["--out", str(again), *options])
    assert again.read_bytes() == text


@pytest.mark.slow
def test_another_seed_gives_mostly_other_texts(by_kind: dict[str, list[Context]]) -> None:
    """In every kind."""
    for kind in (*UNSEEN, *NEW):
        other = draw_contexts(kind, [], bool, 6, 1, set())
        assert len({c.key for c in other} & {c.key for c in by_kind[kind]}) <= 2, kind


@pytest.mark.slow
def test_training_and_validation_are_dealt_as_before(built: list[Context]) -> None:
    """Nothing is added to kinds that adapters see, and no split but newkinds changes."""
    builtin = load_contexts(BUILTIN)
    assert {context.kind for context in built} == {*UNSEEN, *NEW}
    before = split_contexts(builtin, 3, VALIDATION, sorted(UNSEEN))
    after = split_contexts([*built, *builtin], 3, VALIDATION, sorted(UNSEEN | NEW))
    assert len(after["newkinds"]) == len(before["newkinds"]) + len(built)
    for name in set(before) - {"newkinds"}:
        assert after[name] == before[name], name
    assert shared_messages(after) == []


@pytest.mark.slow
def test_no_message_comes_twice(built: list[Context]) -> None:
    """Within a kind, across kinds, or from the built-in set."""
    messages = [fingerprint(context.user) for context in (*load_contexts(BUILTIN), *built)]
    added = messages[-len(built) :]
    assert len(set(added)) == len(added)
    assert not set(added) & set(messages[: -len(built)])


@pytest.mark.slow
def test_nothing_is_nearly_the_same(by_kind: dict[str, list[Context]]) -> None:
    """Contexts of a kind differ in words."""
    for kind, contexts in by_kind.items():
        repeated, alike = repetition(contexts)
        assert alike == 0, kind
        assert repeated < 0.3, kind


def test_repetition_of_known_texts() -> None:
    """Counted by hand."""
    first = exchange("a", "one two three four five six", "x")  # two 5-grams
    second = exchange("a", "one two three four five seven", "x")  # one of them again
    assert repetition([first, second]) == (0.5, 0)
    assert repetition([first, dataclasses.replace(first)]) == (1, 1)
    assert repetition([]) == (0, 0)
    assert words("Fünf Äpfel, x_1 東京タワーです") == ["fünf", "äpfel", "x", "1", "東京", "タワー", "です"]
    assert MOST_ALIKE < 1


def test_only_usable_ones_count() -> None:
    """Contexts that are too long are neither counted nor added."""

    def short(context: Context) -> bool:
        return len(context.turns[1].content) < 80

    present = [exchange("turkish", "Bir", "uzun " * 50), exchange("turkish", "İki", "bu daha az")]
    added = draw_contexts("turkish", present, short, 12, 0, set())
    assert len(added) == 11
    assert all(map(short, added))


def test_too_few_texts_say_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And every wrong option is named, on one line."""
    with pytest.raises(ConfigurationError, match=r"asked for 5000 contexts of kind 'italian', found \d+ here"):
        draw_contexts("italian", [], bool, 5000, 0, set())
    with pytest.raises(SystemExit) as stopped:
        build_contexts.main(["--out", str(tmp_path / "a.txt"), "--per-kind", "0"])
    problems = capsys.readouterr().err
    assert stopped.value.code == 2
    assert problems.count("\n") == 1
    assert "--per-kind: 0" in problems
    assert "a.txt" in problems


def test_unwritable_path(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 2."""
    monkeypatch.setattr(build_contexts, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(build_contexts, "build", lambda *_: ([], [exchange("rust", "a", "b")]))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        build_contexts.main(["--out", str(tmp_path / "file" / "a.jsonl")])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_capitals_and_scripts(by_kind: dict[str, list[Context]]) -> None:
    """Capitals have no small letters, and languages have letters or words of their own."""
    for context in by_kind["capitals"]:
        assert not re.search("[a-z]", context.turns[0].content + context.turns[1].content)
    for kind, letters in (
        ("japanese", "[ぁ-ん]"),
        ("turkish", "[ıİşŞğçÇöÖüÜ]"),
        ("italian", r"\b(il|la|un|di|che|per|a|è|e)\b"),
    ):
        having = [bool(re.search(letters, c.turns[0].content + c.turns[1].content, re.IGNORECASE)) for c in by_kind[kind]]
        assert all(having), kind


@pytest.mark.slow
def test_quoted_texts_are_what_they_claim(by_kind: dict[str, list[Context]]) -> None:
    """Licences, manual and headers are found again in the files they are from."""
    texts = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for _, path in licence_files())
    flat = re.sub(r"\s+", "", texts)
    for context in by_kind["licences"]:
        assert re.sub(r"\s+", "", context.turns[1].content) in flat
    from pydoc_data.topics import topics

    flat = re.sub(r"\s+", "", "\n".join(topics.values()))
    for context in by_kind["manual"]:
        assert re.sub(r"\s+", "", context.turns[1].content) in flat
    root = Path(torch.__file__).parent / "include"
    for user, reply in islice(headers(np.random.default_rng(0)), 5):
        path = next(root / word.rstrip(".:,?") for word in user.split() if (root / word.rstrip(".:,?")).is_file())
        lines = {line.strip() for line in path.read_text().expandtabs(4).split("\n")}
        assert {line.strip() for line in reply.split("\n")} <= lines


def test_unicode_names_and_bytecode() -> None:
    """Names belong to the code points asked for, and instructions exist."""
    import dis
    import unicodedata

    for user, reply in islice(unicode_names(np.random.default_rng(0)), 40):
        character = chr(int(re.search(r"U\+([0-9A-F]+)", user)[1], 16))
        assert character in reply or f"{ord(character):04x}" in reply or f"&#{ord(character)};" in reply
        assert unicodedata.name(character).lower() in reply.lower()
    for _, reply in islice(bytecode(np.random.default_rng(0)), 400):
        assert not re.search(r" at 0x|frozenset", reply)  # either differs from process to process
        assert set(re.findall(r"\b[A-Z_]{3,}\b", reply)) & set(dis.opmap)


@pytest.mark.parametrize("language", ["english", "italian", "japanese", "turkish"])
def test_pattern_files(language: str) -> None:
    """Rows have exactly the parts that the sentences of their block use; shares are disjoint."""
    for pattern in patterns(language):
        needed = {int(place) for text in (*pattern.users, *pattern.replies) for place in re.findall(r"\{(\d)\}", text)}
        assert pattern.users
        assert pattern.replies
        for row in pattern.rows:
            assert needed == set(range(len(row))) or (needed == set() and row == ("-",)), (pattern.users[0], row)
    first, second = (list(compose(language, np.random.default_rng(0), part, 2)) for part in (0, 1))
    assert not set(first) & set(second)
    assert not [text for pair in first + second for text in pair if re.search(r"[{}]", text)]


def test_places_are_filled_with_capitals_where_sentences_start() -> None:
    """Also in Turkish, where i has a dot as a capital."""
    assert fill_template("{0}, so. {1}: {0}?\n- {0} x", ("ab", "cd"), "italian") == "Ab, so. Cd: ab?\n- Ab x"
    assert fill_template("{0} i {0}", ("iki",), "turkish") == "İki i iki"


def test_cuts_are_whole_sentences_and_lines() -> None:
    """And no longer than asked."""
    random = np.random.default_rng(0)
    prose = "One is here. Two is there. Three went away. Four is a longer one, as one can see."
    for _ in range(50):
        passage = cut(prose, random, 5, 60)
        assert passage in prose
        assert not passage or passage.endswith(".")
        assert len(passage) <= 60
        lines = cut("  a b c\n    d e f\n  g h i", random, 5, 30, lines=True)
        assert set(lines.split("\n")) <= {"a b c", "  d e f", "d e f", "g h i", ""}


@pytest.mark.slow
def test_rust_braces_match(by_kind: dict[str, list[Context]]) -> None:
    """In Rust and in LaTeX, and environments are closed."""
    for context in (*by_kind["rust"], *by_kind["latex"]):
        reply = context.turns[1].content
        assert reply.count("{") == reply.count("}"), reply
        assert reply.count(r"\begin{") - reply.count(r"\end{") in (0, 1)  # a title page opens the document only


def test_ways_to_be_odd() -> None:
    """Each changes the text, repeatably, and in its own way only."""
    assert list(ODD) == ["typos", "shuffled words", "rare script", "reversed words", "repeated punctuation"]
    for how in ODD:
        made = make_odd(TEXT, how, np.random.default_rng(0))
        assert made != TEXT
        assert made == make_odd(TEXT, how, np.random.default_rng(0))
        assert made.count("\n") == TEXT.count("\n")
    random = np.random.default_rng(0)
    assert Counter(words(make_odd(TEXT, "shuffled words", random))) == Counter(words(TEXT))
    assert make_odd(make_odd(TEXT, "reversed words", random), "reversed words", random) == TEXT
    assert re.sub(r"([^\w\s])\1+", r"\1", make_odd(TEXT, "repeated punctuation", random)) == TEXT
    scripts = {make_odd("abz", "rare script", np.random.default_rng(seed)) for seed in range(30)}
    assert scripts == {"\uff41\uff42\uff5a", "აბჩ", "ᎠᎡᎹ"}
    with pytest.raises(ConfigurationError, match="'mirrored' is no way to make a text odd"):
        make_odd(TEXT, "mirrored", random)
    for how in ODD:
        assert make_odd("", how, random) == ""


def test_typos_are_a_few_edits_of_longer_words() -> None:
    """One slip a word, in the share of the words that was asked for."""
    random = np.random.default_rng(0)
    for share in (0.0, 0.5, 1.0):
        for _ in range(30):
            made = typos(TEXT, random, share)
            before, after = TEXT.split(), made.split()
            assert len(before) == len(after)
            changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert changed
            assert share > 0 or len(changed) == 1
            assert share < 1 or len(changed) == sum(len(re.sub(r"\W", "", word)) >= 3 for word in before)
            for a, b in changed:
                assert len(re.sub(r"\W", "", a)) >= 3
                assert abs(len(a) - len(b)) <= 1
                assert SequenceMatcher(None, a, b).ratio() > 0.5
    assert typos("a b 12", random) == "a b 12"


def test_model_writes_its_own_replies(
    tiny: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeatably."""
    monkeypatch.setattr("introspection_lit.contexts.generation.written.SUBJECTS", ("tea",))
    monkeypatch.setattr("introspection_lit.contexts.generation.written.LONGEST", 12)
    model = load_model(BaseModel(str(tiny))).eval()
    users = list(islice(requests(0), 3))
    assert len(set(requests(0))) == len(list(requests(1)))
    first = sample(model, tokenizer, users, torch.Generator().manual_seed(0))
    assert first == sample(model, tokenizer, users, torch.Generator().manual_seed(0))
    contexts = list(model_written(model, tokenizer, bool, 3, 0))
    assert all(context.kind == "model-written" and context.turns[1].content for context in contexts)


def test_sampling_matches_the_model_without_a_cache(tokenizer: PreTrainedTokenizerBase) -> None:
    """Replies end at the end of turn, rows do not see each other's padding, and unfinished replies are left out."""
    end = tokenizer.eos_token_id
    script = {1: [tokenizer.encode("a")[0], end], 0: [tokenizer.encode("b")[0]] * 200}
    step = iter(range(1000))

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, **rest: object) -> object:
        assert (position_ids[:, -1] == attention_mask.sum(1) - 1).all()
        now = next(step)
        logits = torch.full((2, 1, len(tokenizer)), -1e9)
        for row in (0, 1):
            logits[row, 0, script[row][min(now, len(script[row]) - 1)]] = 0
        return SimpleNamespace(logits=logits, **{cache_option(model): None})

    made = SimpleNamespace(device="cpu", generation_config=SimpleNamespace(eos_token_id=[end]))
    wrapped = type("Scripted", (), {"__call__": lambda _, **names: model(**names), **vars(made)})()
    assert sample(wrapped, tokenizer, ["A much longer question?", "Hi"], torch.Generator()) == ["", "a"]
