"""Builds the larger set of contexts: the built-in ones unchanged, and hundreds of each kind that adapters never see.

``scripts/build_contexts.py`` writes it into a file of the user's; ``data.contexts: large`` into the cache, once for each
tokenizer and limit.
"""

from __future__ import annotations

import hashlib
import json
import platform
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

import introspection_lit
from introspection_lit.contexts.context import BUILTIN, LARGE, Context, fingerprint
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.generation.passages import licence_files
from introspection_lit.contexts.generation.sources import NEW, UNSEEN, draw_contexts
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.files import cache_folder, write_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Of `data.contexts: large`: usable contexts of each unseen kind, and what decides which.
PER_KIND, SEED = 320, 0
PACKAGES = ("numpy", "sympy", "tokenizers", "torch", "transformers")


class Lengths:
    """How long contexts are in a tokenizer, each measured once.

    Args:
        tokenizer: Of the model.
        limit: The longest context that can be used, in tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.known: dict[str, int] = {}

    def __call__(self, context: Context) -> int:
        """The tokens of turn 1, chat template included."""
        if context.key not in self.known:
            # Any question will do: the tokens of a context do not depend on it.
            self.known[context.key] = len(encode(self.tokenizer, context, "Is it?", Phrasing()).context_ids)
        return self.known[context.key]

    def usable(self, context: Context) -> bool:
        """Whether a context is short enough."""
        return self(context) <= self.limit


def build(
    usable: Callable[[Context], bool], per_kind: int, seed: int, say: Callable[[str], object] = str
) -> tuple[list[Context], list[Context]]:
    """Draw the contexts to add.

    Args:
        usable: Whether a context is short enough.
        per_kind: How many usable ones of each unseen kind there must be.
        seed: Decides which.
        say: Is told each kind before it is filled.

    Returns:
        The built-in contexts, and the added ones, kind by kind.

    Raises:
        ConfigurationError: There are too few texts for some kinds; all of them are named.
    """
    builtin = load_contexts(BUILTIN)
    taken = {fingerprint(context.user) for context in builtin}
    added: list[Context] = []
    problems: list[str] = []
    for kind in (*UNSEEN, *NEW):
        say(kind)
        try:
            added += draw_contexts(kind, [c for c in builtin if c.kind == kind], usable, per_kind, seed, taken)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return builtin, added


def as_text(added: Sequence[Context]) -> str:
    """The lines of the file: those of the built-in set as they are, then the added ones."""
    builtin = (files("introspection_lit") / "assets" / "contexts.jsonl").read_text(encoding="utf-8")
    rows = ({"kind": c.kind, "user": c.turns[0].content, "assistant": c.turns[1].content} for c in added)
    return builtin.rstrip("\n") + "\n" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def installed() -> dict[str, Any]:
    """What the texts depend on of what is installed: ``versions`` by name, and ``licences_of``, a list of packages."""
    return {
        "versions": {
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "introspection_lit": introspection_lit.__version__,
            **{name: version(name) for name in PACKAGES},
        },
        "licences_of": sorted({name for name, _ in licence_files()}),
    }


def facts(
    file: str, text: str, settings: Mapping[str, Any], builtin: Sequence[Context], added: Sequence[Context]
) -> dict[str, Any]:
    """What a file was made with; equal facts (but the name) mean an equal file.

    Args:
        file: Its name.
        text: What is in it.
        settings: Seed, counts asked for, limit and whose tokenizer, by name.
        builtin: The contexts that it has from the built-in set.
        added: The others.
    """
    counts = {
        kind: {name: sum(c.kind == kind for c in some) for name, some in (("builtin", builtin), ("added", added))}
        for kind in dict.fromkeys(context.kind for context in added)
    }
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"file": file, "sha256": digest, **settings, "counts": counts, **installed()}


def large_contexts(tokenizer: PreTrainedTokenizerBase, limit: int, told: bool = True) -> list[Context]:
    """The contexts of ``data.contexts: large``: built on first use, read from the cache from then on.

    The file's name depends on all that its text depends on. Several processes may build it at once: it is the same text,
    and it appears whole.

    Args:
        tokenizer: Measures the contexts, without a system prompt.
        limit: The longest usable context, in tokens (``data.max_context_tokens``).
        told: Show progress, and say where the file is; for one process of a run.

    Raises:
        ConfigurationError: There are too few texts here, or the cache cannot be written to.
    """
    settings = {"seed": SEED, "per_kind": PER_KIND, "limit": limit, "tokenizer": _measure_of(tokenizer)}
    whole = json.dumps([settings, installed(), _sources()], sort_keys=True)
    path = cache_folder() / f"contexts-large-{hashlib.sha256(whole.encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        lengths = Lengths(tokenizer, limit)
        try:
            with _progress(told) as say:
                builtin, added = build(lengths.usable, PER_KIND, SEED, say)
            text = as_text(added)
            described = json.dumps(facts(path.name, text, settings, builtin, added), indent=2)
            write_file(path.with_suffix(".json"), described + "\n")
            write_file(path, text)
        except ConfigurationError as error:
            kinds = ", ".join(UNSEEN)
            raise ConfigurationError(
                [
                    f"data.contexts: '{LARGE}' cannot be made here: {'; '.join(error.problems)}. Expected {PER_KIND} of "
                    f"each unseen kind, of at most {limit} tokens (data.max_context_tokens). Raise that limit, or install "
                    "what the kind is made from (docs/contexts.md); or take the built-in set, which has fewer: "
                    f"--data.contexts {BUILTIN} --data.test_kinds '[{kinds}]'."
                ]
            ) from error
        except RunError as error:
            raise ConfigurationError([f"INTROSPECTION_LIT_CACHE: {problem}" for problem in error.problems]) from error
        if told:
            PlainConsole().print(f"the larger set of contexts: {path}", soft_wrap=True)
    return load_contexts(str(path))


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar that moves on when it is told the next kind."""
    kinds = (*UNSEEN, *NEW)
    with Progress(console=PlainConsole(), disable=not shown) as bar:
        task = bar.add_task("", total=len(kinds))
        yield lambda kind: bar.update(task, completed=kinds.index(kind), description=f"contexts, once: {kind}")
        bar.update(task, completed=len(kinds), description="contexts")


def _measure_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the lengths depend on; truncation and padding change while a tokenizer is used."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: part for name, part in whole.items() if name not in ("truncation", "padding")}
    seen = json.dumps([kept, tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(seen.encode()).hexdigest()[:16]


def _sources() -> str:
    """A hash of this folder's code and of the texts that it composes from: whoever changes them gets another set."""
    assets = files("introspection_lit") / "assets"
    read = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    read += [each.read_bytes() for each in sorted(assets.iterdir(), key=str) if each.name.endswith((".txt", ".jsonl"))]
    return hashlib.sha256(b"\0".join(read)).hexdigest()[:16]
