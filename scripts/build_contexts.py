"""Builds a larger set of contexts: the built-in ones unchanged, and hundreds of each kind that adapters never see.

    python scripts/build_contexts.py --out contexts-large.jsonl --per-kind 320 --seed 0       # some 30 s, no network

Of each unseen kind there are then at least --per-kind contexts of at most --limit tokens. Nothing is added to the kinds
that are trained or validated on. docs/contexts.md says what the texts are made from. Next to the file, NAME.json says with
which versions it was made and what its sha256 is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from rich.table import Table
from transformers import PreTrainedTokenizerBase

import introspection_lit
from introspection_lit.contexts import BUILTIN, Context, fingerprint, load_contexts
from introspection_lit.conversations import Phrasing, encode
from introspection_lit.errors import ConfigurationError, RunError
from introspection_lit.files import write_whole
from introspection_lit.larger_contexts.passages import licence_files
from introspection_lit.larger_contexts.sources import NEW, UNSEEN, fill, repetition
from introspection_lit.larger_contexts.written import REQUESTS, SUBJECTS, written
from introspection_lit.model import EMBEDDED, BaseModel, load_model, load_tokenizer
from introspection_lit.questions import QUESTION
from introspection_lit.terminal import PlainConsole

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
            self.known[context.key] = len(encode(self.tokenizer, context, QUESTION, Phrasing()).context_ids)
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
            added += fill(kind, [c for c in builtin if c.kind == kind], usable, per_kind, seed, taken)
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return builtin, added


def as_text(added: list[Context]) -> str:
    """The lines of the file: those of the built-in set as they are, then the added ones."""
    builtin = (files("introspection_lit") / "assets" / "contexts.jsonl").read_text(encoding="utf-8")
    rows = ({"kind": c.kind, "user": c.turns[0].content, "assistant": c.turns[1].content} for c in added)
    return builtin.rstrip("\n") + "\n" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(builtin: list[Context], added: list[Context], lengths: Lengths) -> Table:
    """What there is of each kind that was filled."""
    made = Table(title=f"{len(builtin) + len(added)} contexts, {len(added)} of them added", padding=0)
    columns = ("kind", "built-in", "added", "usable", "users", "replies", "tokens", "5-grams", "alike")
    for column in columns:
        made.add_column(column, no_wrap=True, justify="left" if column == "kind" else "right")
    for kind in dict.fromkeys(context.kind for context in added):
        old, new = ([c for c in contexts if c.kind == kind] for contexts in (builtin, added))
        users, replies = ({c.turns[turn].content for c in old + new} for turn in (0, 1))
        repeated, alike = repetition(old + new)
        numbers = (len(old), len(new), sum(map(lengths.usable, old + new)), len(users), len(replies))
        medians = [str(round(statistics.median(map(lengths, some)))) if some else "-" for some in (old, new)]
        made.add_row(kind, *map(str, numbers), " / ".join(medians), f"{repeated:.2f}", f"{alike:.2f}")
    made.caption = "tokens: medians, built-in / added; 5-grams: share that recurs; alike: near-duplicates of each"
    return made


def main(args: list[str] | None = None) -> None:
    """Build the file.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 2, with the problems on stderr, if there are too few texts or the file cannot be written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .jsonl")
    parser.add_argument("--per-kind", type=int, default=320, help="contexts of each unseen kind (default: 320)")
    parser.add_argument("--seed", type=int, default=0, help="decides which (default: 0)")
    parser.add_argument("--limit", type=int, default=128, help="data.max_context_tokens of the experiment (default: 128)")
    parser.add_argument("--model", default=EMBEDDED, help="whose tokenizer counts (default: the embedded SmolLM2)")
    parser.add_argument("--model-written", type=int, default=0, help="replies that the model writes itself (default: 0)")
    options = parser.parse_args(args)
    console = PlainConsole()
    try:
        _check(options)
        base = BaseModel(options.model)
        lengths = Lengths(load_tokenizer(base), options.limit)
        builtin, added = build(
            lengths.usable, options.per_kind, options.seed, lambda kind: console.print(f"filling {kind}")
        )
        if options.model_written:
            console.print(f"writing {options.model_written} replies")
            model = load_model(base).eval()
            taken = {fingerprint(context.user) for context in (*builtin, *added)}
            own = list(
                written(
                    model,
                    lengths.tokenizer,
                    lambda context: lengths.usable(context) and fingerprint(context.user) not in taken,
                    options.model_written,
                    options.seed,
                )
            )
            if len(own) < options.model_written:
                raise ConfigurationError(
                    [f"--model-written: asked for {options.model_written}, the model wrote {len(own)} that can be used."]
                )
            added += own
        text = as_text(added)
        write_whole(options.out, text)
        companion = options.out.with_suffix(".json")
        facts = _facts(options, builtin, added, text)
        write_whole(companion, json.dumps(facts, indent=2) + "\n")
    except (ValueError, OSError, RunError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error
    console.print(table(builtin, added, lengths))
    named = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())  # type: ignore[attr-defined]
    console.print(f"{options.out}: sha256 {facts['sha256']}\nseed {options.seed}; {named}; see {companion}")


def _check(options: argparse.Namespace) -> None:
    problems = [
        f"--{name.replace('_', '-')}: {getattr(options, name)} was given; expected {lowest} or more."
        for name, lowest in (("per_kind", 1), ("seed", 0), ("limit", 1), ("model_written", 0))
        if getattr(options, name) < lowest
    ]
    if options.out.suffix != ".jsonl":
        problems.append(f"--out: {options.out} was given; expected a name that ends in .jsonl.")
    most = len(REQUESTS) * len(SUBJECTS)
    if options.model_written > most:
        problems.append(f"--model-written: {options.model_written} was given; there are {most} requests to reply to.")
    if problems:
        raise ConfigurationError(problems)


def _facts(options: argparse.Namespace, builtin: list[Context], added: list[Context], text: str) -> dict[str, object]:
    """What the file was made with; equal facts (but the name) mean an equal file."""
    kinds = list(dict.fromkeys(context.kind for context in added))
    return {
        "file": options.out.name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "seed": options.seed,
        "per_kind": options.per_kind,
        "limit": options.limit,
        "model": options.model,
        "counts": {kind: {"builtin": _count(builtin, kind), "added": _count(added, kind)} for kind in kinds},
        "versions": {
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "introspection_lit": introspection_lit.__version__,
            **{name: version(name) for name in PACKAGES},
        },
        "licences_of": sorted({name for name, _ in licence_files()}),
    }


def _count(contexts: list[Context], kind: str) -> int:
    return sum(context.kind == kind for context in contexts)


if __name__ == "__main__":
    main()
