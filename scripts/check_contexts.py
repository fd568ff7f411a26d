"""Print statistics of a set of contexts before training on it.

    python scripts/check_contexts.py                                  # the built-in set
    python scripts/check_contexts.py large                            # what the full experiment on SmolLM2 uses
    python scripts/check_contexts.py mine.jsonl --model Qwen/Qwen2.5-7B-Instruct --limit 128

Prints, for each kind, the number of contexts, their lengths in tokens of the model (turn 1, template included), and how
many are short enough; then the number of user messages that several kinds share (only one kind keeps each).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict

from rich.table import Table

from introspection_lit.contexts.context import BUILTIN, LARGE, fingerprint
from introspection_lit.contexts.conversations import Phrasing, encode
from introspection_lit.contexts.generation.build import large_contexts
from introspection_lit.contexts.loading import load_contexts
from introspection_lit.models.base_model import EMBEDDED, BaseModel
from introspection_lit.models.loading import load_tokenizer
from introspection_lit.tasks.questions import QUESTION
from introspection_lit.utils.console import PlainConsole


def main(args: list[str] | None = None) -> None:
    """Print the table.

    Args:
        args: The command line, without the program's name; default: ``sys.argv``.

    Raises:
        SystemExit: 2, with the problems on stderr, if contexts or tokenizer cannot be loaded.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contexts", nargs="?", default=BUILTIN, help="builtin, large, a .jsonl file, or hub:NAME")
    parser.add_argument("--model", default=EMBEDDED, help="whose tokenizer counts (default: the embedded SmolLM2)")
    parser.add_argument("--limit", type=int, default=128, help="data.max_context_tokens of the experiment (default: 128)")
    options = parser.parse_args(args)
    try:
        tokenizer = load_tokenizer(BaseModel(options.model))
        larger = options.contexts == LARGE
        contexts = large_contexts(tokenizer, options.limit) if larger else load_contexts(options.contexts)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error

    lengths: dict[str, list[int]] = defaultdict(list)
    owners: dict[str, set[str]] = defaultdict(set)
    for context in contexts:
        lengths[context.kind].append(len(encode(tokenizer, context, QUESTION, Phrasing()).context_ids))
        owners[fingerprint(context.user)].add(context.kind)
    table = Table(title=f"{len(contexts)} contexts of {len(lengths)} kinds")
    for column in ("kind", "contexts", "shortest", "median", "longest", f"up to {options.limit}"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, counts in sorted(lengths.items()):
        fitting = sum(count <= options.limit for count in counts)
        numbers = (len(counts), min(counts), round(statistics.median(counts)), max(counts), fitting)
        table.add_row(kind, *map(str, numbers))
    console = PlainConsole()
    console.print(table)
    shared = [sorted(kinds) for kinds in owners.values() if len(kinds) > 1]
    console.print(f"user messages that several kinds share: {len(shared)} {shared[:5] if shared else ''}")


if __name__ == "__main__":
    main()
