"""Builds the larger set of contexts: the built-in ones, and hundreds of each kind that only tests use.

``scripts/build_contexts.py`` writes it to a given file; ``data.contexts: large`` writes it to the cache, once for each
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


# Of `data.contexts: large`: usable contexts of each unseen kind, and the random seed.
PER_KIND, SEED = 320, 0
# The question of a measured conversation; the tokens of the context do not depend on it.
ANY_QUESTION = "Is it?"
PACKAGES = ("numpy", "sympy", "tokenizers", "torch", "transformers")


class Lengths:
    """Lengths of contexts in tokens, each measured once.

    Args:
        tokenizer: The model's.
        limit: Length of the longest usable context, in tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.lengths: dict[str, int] = {}

    def __call__(self, context: Context) -> int:
        """Number of tokens of a context, chat template included."""
        if context.key not in self.lengths:
            # Any question will do: the tokens of a context do not depend on it.
            self.lengths[context.key] = len(encode(self.tokenizer, context, ANY_QUESTION, Phrasing()).context_ids)
        return self.lengths[context.key]

    def usable(self, context: Context) -> bool:
        """Whether a context is short enough."""
        return self(context) <= self.limit


def build(
    usable: Callable[[Context], bool], per_kind: int, seed: int, progress: Callable[[str], object] = str
) -> tuple[list[Context], list[Context]]:
    """Draw the contexts to add.

    Args:
        usable: Whether a context is short enough.
        per_kind: Number of usable contexts of each unseen kind, built-in ones included.
        seed: Random seed.
        progress: Called with each kind before it is drawn.

    Returns:
        The built-in contexts, and the added ones, kind by kind.

    Raises:
        ConfigurationError: There are too few texts for some kinds; all these kinds are named.
    """
    builtin = load_contexts(BUILTIN)
    taken = {fingerprint(context.user) for context in builtin}
    added: list[Context] = []
    problems: list[str] = []
    for kind in (*UNSEEN, *NEW):
        progress(kind)
        try:
            added += draw_contexts(kind, [c for c in builtin if c.kind == kind], usable, per_kind, seed, taken)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return builtin, added


def as_text(added: Sequence[Context]) -> str:
    """The content of the file: the lines of the built-in set unchanged, then the added contexts."""
    builtin = (files("introspection_lit") / "assets" / "contexts.jsonl").read_text(encoding="utf-8")
    rows = ({"kind": c.kind, "user": c.turns[0].content, "assistant": c.turns[1].content} for c in added)
    return builtin.rstrip("\n") + "\n" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def installed() -> dict[str, Any]:
    """The installed software that the texts depend on: ``versions`` by name, and ``licences_of``, a list of packages."""
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
    """The record of how a file was made; files with equal records (except for the name) are equal.

    Args:
        file: Name of the file.
        text: Its content.
        settings: Seed, counts, limit and tokenizer, by name.
        builtin: Its contexts from the built-in set.
        added: Its other contexts.
    """
    counts = {
        kind: {name: sum(c.kind == kind for c in some) for name, some in (("builtin", builtin), ("added", added))}
        for kind in dict.fromkeys(context.kind for context in added)
    }
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"file": file, "sha256": digest, **settings, "counts": counts, **installed()}


def large_contexts(tokenizer: PreTrainedTokenizerBase, limit: int, verbose: bool = True) -> list[Context]:
    """The contexts of ``data.contexts: large``: built on first use, then read from the cache.

    The name of the cached file has a hash of everything that its content depends on. Several processes may build it at
    once: they write the same content, atomically.

    Args:
        tokenizer: Measures the contexts, without a system prompt.
        limit: Length of the longest usable context, in tokens (``data.max_context_tokens``).
        verbose: Show progress and the file's path; for one process of a run.

    Raises:
        ConfigurationError: There are too few texts on this machine, or the cache cannot be written.
    """
    settings = {"seed": SEED, "per_kind": PER_KIND, "limit": limit, "tokenizer": _tokenizer_hash(tokenizer)}
    identity = json.dumps([settings, installed(), _source_hash()], sort_keys=True)
    path = cache_folder() / f"contexts-large-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        lengths = Lengths(tokenizer, limit)
        try:
            with _progress(verbose) as progress:
                builtin, added = build(lengths.usable, PER_KIND, SEED, progress)
            text = as_text(added)
            record = json.dumps(facts(path.name, text, settings, builtin, added), indent=2)
            write_file(path.with_suffix(".json"), record + "\n")
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
        if verbose:
            PlainConsole().print(f"the larger set of contexts: {path}", soft_wrap=True)
    return load_contexts(str(path))


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar; yields a function to call with each kind before it is drawn."""
    kinds = (*UNSEEN, *NEW)
    with Progress(console=PlainConsole(), disable=not shown) as bar:
        task = bar.add_task("", total=len(kinds))
        yield lambda kind: bar.update(task, completed=kinds.index(kind), description=f"contexts, once: {kind}")
        bar.update(task, completed=len(kinds), description="contexts")


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what lengths depend on, without truncation and padding, which change during use."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    settings = {name: part for name, part in backend.items() if name not in ("truncation", "padding")}
    identity = json.dumps([settings, tokenizer.chat_template, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _source_hash() -> str:
    """A hash of this folder's code and of the assets that it uses: a change of either makes another set."""
    assets = files("introspection_lit") / "assets"
    contents = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    contents += [
        asset.read_bytes() for asset in sorted(assets.iterdir(), key=str) if asset.name.endswith((".txt", ".jsonl"))
    ]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
