"""The larger set of contexts: made on first use and kept."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from run_scripts import script
from transformers import PreTrainedTokenizerBase

from introspection_lit.contexts.context import LARGE
from introspection_lit.contexts.generation import build as larger
from introspection_lit.contexts.generation.build import large_contexts
from introspection_lit.contexts.generation.sources import NEW, UNSEEN
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.recorded_settings import resolve_paths, validate_settings
from introspection_lit.training.options import DataOptions
from introspection_lit.utils.errors import ConfigurationError

build_contexts = script("build_contexts")
VALIDATION = ("csv", "dutch", "java", "reviews")
PER_KIND = 50
TEXT = "Rivers carry minerals from rocks into the ocean, slowly.\nWater evaporates; the salt stays behind, doesn't it?"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and few contexts of each kind."""
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(larger, "PER_KIND", 45)
    return tmp_path / "cache"


@pytest.mark.slow
def test_large_is_made_once(
    cache: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is the file of the script, shown by one process only, and made anew if what it depends on changes."""
    contexts = large_contexts(tokenizer, 400)
    said = capsys.readouterr().out
    (made,) = cache.glob("*.jsonl")
    assert made.name in said
    assert load_contexts(str(made)) == contexts
    assert Counter(context.kind for context in contexts)["unicode"] == 45
    facts = json.loads(made.with_suffix(".json").read_text())
    assert facts["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    monkeypatch.setattr(build_contexts, "load_tokenizer", lambda _: tokenizer)
    build_contexts.main(["--out", str(tmp_path / "a.jsonl"), "--per-kind", "45", "--limit", "400"])
    assert (tmp_path / "a.jsonl").read_bytes() == made.read_bytes()
    capsys.readouterr()

    real, built = larger.build, []
    monkeypatch.setattr(larger, "build", lambda *given: built.append(given[1:3]) or real(*given))
    tokenizer("a", truncation=True, max_length=5)  # leaves its mark on the tokenizer, not on the lengths
    assert large_contexts(tokenizer, 400) == contexts
    assert built == []
    large_contexts(tokenizer, 401, verbose=False)
    assert built == [(45, 0)]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(larger, "version", lambda _: "0")
    large_contexts(tokenizer, 400, verbose=False)
    other = copy.deepcopy(tokenizer)
    other.chat_template += " "
    large_contexts(other, 400, verbose=False)
    assert len(built) == 3
    assert len(list(cache.glob("*.jsonl"))) == 4
    assert not list(cache.glob("*.unfinished"))


@pytest.mark.slow
def test_large_that_cannot_be_made_says_what_to_do(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few texts on this machine, a cache that cannot be written to, and nobody to measure lengths."""
    monkeypatch.setitem(NEW, "licences", lambda _: iter(()))
    with pytest.raises(ConfigurationError, match="'licences', found 0 here") as caught:
        large_contexts(tokenizer, 400, verbose=False)
    (problem,) = caught.value.problems
    assert "Expected 45 of each unseen kind" in problem
    assert f"--data.contexts builtin --data.test_kinds '[{', '.join(UNSEEN)}]'" in problem
    assert not list(cache.glob("*"))
    monkeypatch.undo()
    monkeypatch.setattr(larger, "PER_KIND", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTROSPECTION_LIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"INTROSPECTION_LIT_CACHE: .* cannot be written"):
        large_contexts(tokenizer, 400, verbose=False)
    with pytest.raises(ConfigurationError, match=r"got 'large' where no tokenizer .*build_contexts\.py"):
        load_contexts(LARGE)


def test_large_needs_no_kinds_and_no_file() -> None:
    """Its own kinds are kept for the test unless others are named; a file that says it is believed and followed."""
    assert DataOptions(LARGE).held_out_kinds == (list(VALIDATION), [*UNSEEN, *NEW])
    assert DataOptions(LARGE, test_kinds=["rust"]).held_out_kinds[1] == ["rust"]
    settings = {"data.contexts": LARGE, "data.info": "none"}
    assert resolve_paths(validate_settings(settings, "x"), Path("/nowhere/introspection.json"), []) == settings
