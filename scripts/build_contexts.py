"""Build a larger set of contexts: the built-in ones unchanged, and hundreds more of each kind that is never trained on.

    python scripts/build_contexts.py --out contexts-large.jsonl --per-kind 320 --seed 0       # some 30 s, no network

Each unseen kind then has at least --per-kind contexts of at most --limit tokens. Kinds of training and validation do not
change. docs/contexts.md describes the sources of the texts. NAME.json beside the file records the versions and the file's
sha256. `data.contexts: large` makes the set with these defaults by itself, in the cache; this script is for other settings
and for keeping a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from rich.table import Table

from introspection_lit.contexts.context import Context, fingerprint
from introspection_lit.contexts.generation.build import PER_KIND, SEED, Lengths, as_text, build, facts
from introspection_lit.contexts.generation.sources import repetition
from introspection_lit.contexts.generation.written import REQUESTS, SUBJECTS, model_written
from introspection_lit.models.base_model import EMBEDDED, BaseModel
from introspection_lit.models.loading import load_model, load_tokenizer
from introspection_lit.utils.console import PlainConsole
from introspection_lit.utils.errors import ConfigurationError, RunError
from introspection_lit.utils.files import write_file


def kind_table(builtin: list[Context], added: list[Context], lengths: Lengths) -> Table:
    """A table of the kinds with added contexts: counts, distinct texts, lengths and repetition."""
    kinds = Table(title=f"{len(builtin) + len(added)} contexts, {len(added)} of them added", padding=0)
    columns = ("kind", "built-in", "added", "usable", "users", "replies", "tokens", "5-grams", "alike")
    for column in columns:
        kinds.add_column(column, no_wrap=True, justify="left" if column == "kind" else "right")
    for kind in dict.fromkeys(context.kind for context in added):
        old, new = ([c for c in contexts if c.kind == kind] for contexts in (builtin, added))
        users, replies = ({c.turns[turn].content for c in old + new} for turn in (0, 1))
        repeated, alike = repetition(old + new)
        numbers = (len(old), len(new), sum(map(lengths.usable, old + new)), len(users), len(replies))
        medians = [str(round(statistics.median(map(lengths, some)))) if some else "-" for some in (old, new)]
        kinds.add_row(kind, *map(str, numbers), " / ".join(medians), f"{repeated:.2f}", f"{alike:.2f}")
    kinds.caption = "tokens: medians, built-in / added; 5-grams: share that recurs; alike: near-duplicates of each"
    return kinds


def main(args: list[str] | None = None) -> None:
    """Build the file.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 2, with the problems on stderr, if there are too few texts or the file cannot be written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .jsonl")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="contexts of each unseen kind (default: 320)")
    parser.add_argument("--seed", type=int, default=SEED, help="decides which (default: 0)")
    parser.add_argument("--limit", type=int, default=128, help="data.max_context_tokens of the experiment (default: 128)")
    parser.add_argument("--model", default=EMBEDDED, help="whose tokenizer counts (default: the embedded SmolLM2)")
    parser.add_argument("--model-written", type=int, default=0, help="replies that the model writes itself (default: 0)")
    options = parser.parse_args(args)
    console = PlainConsole()
    try:
        _check(options)
        base = BaseModel(options.model)
        lengths = Lengths(load_tokenizer(base), options.limit)
        try:
            builtin, added = build(
                lengths.usable, options.per_kind, options.seed, lambda kind: console.print(f"filling {kind}")
            )
        except ConfigurationError as error:
            raise ConfigurationError(
                [f"--per-kind: {problem}. Ask for as many or fewer." for problem in error.problems]
            ) from error
        if options.model_written:
            console.print(f"writing {options.model_written} replies")
            model = load_model(base).eval()
            used = {fingerprint(context.user) for context in (*builtin, *added)}
            own = list(
                model_written(
                    model,
                    lengths.tokenizer,
                    lambda context: lengths.usable(context) and fingerprint(context.user) not in used,
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
        write_file(options.out, text)
        companion = options.out.with_suffix(".json")
        settings = {name: getattr(options, name) for name in ("seed", "per_kind", "limit", "model")}
        description = facts(options.out.name, text, settings, builtin, added)
        write_file(companion, json.dumps(description, indent=2) + "\n")
    except (ValueError, OSError, RunError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from error
    console.print(kind_table(builtin, added, lengths))
    versions = ", ".join(f"{name} {number}" for name, number in description["versions"].items())
    console.print(f"{options.out}: sha256 {description['sha256']}\nseed {options.seed}; {versions}; see {companion}")


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


if __name__ == "__main__":
    main()
