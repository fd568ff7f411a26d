"""Sources of contexts of the kinds that only tests use, made from what is installed with this package.

A source is a long or endless random stream of user messages and replies of one kind. ``draw_contexts`` takes from it those
that are short enough and unlike all others so far. docs/contexts.md says what each kind is made from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from introspection_lit.contexts.context import Context, exchange, fingerprint
from introspection_lit.contexts.generation.code import latex, rust
from introspection_lit.contexts.generation.logs import logs
from introspection_lit.contexts.generation.passages import bytecode, docstrings, headers, licences, manual, unicode_names
from introspection_lit.contexts.generation.sentences import compose, english
from introspection_lit.contexts.odd_text import make_odd
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator

Pair = tuple[str, str]
PairSource = Callable[[np.random.Generator], Iterator[Pair]]
# Limits of similarity within a kind: the Jaccard index of two contexts' words, and the share of repeated word 5-grams.
MOST_ALIKE, MOST_SEEN = 0.8, 0.4
# Give up on a source after this many unusable contexts in a row.
PATIENCE = 2000
_WORDS = re.compile(r"[\u3400-\u9fff]+|[\u3040-\u309f]+|[\u30a0-\u30ff]+|[^\W_]+")


def words(text: str) -> list[str]:
    """Split a text into lower-case words; Japanese into runs of kanji, hiragana and katakana."""
    return _WORDS.findall(text.casefold())


def capitals(random: np.random.Generator) -> Iterator[Pair]:
    """Composed English and docstrings of the standard library, in capital letters."""
    for user, reply in english(random, part=0):
        yield user.upper(), reply.upper()


def typos(random: np.random.Generator) -> Iterator[Pair]:
    """Composed English and docstrings of the standard library (others than in ``capitals``), with typing errors."""
    for user, reply in english(random, part=1):
        yield make_odd(user, "typos", random), make_odd(reply, "typos", random)


def _composed(language: str) -> PairSource:
    return lambda random: compose(language, random)


# Kinds of the built-in set that no adapter is trained on, and kinds of real text that are not in the built-in set.
UNSEEN: dict[str, PairSource] = {
    "capitals": capitals,
    "italian": _composed("italian"),
    "japanese": _composed("japanese"),
    "latex": latex,
    "logs": logs,
    "rust": rust,
    "turkish": _composed("turkish"),
    "typos": typos,
}
NEW: dict[str, PairSource] = {
    "bytecode": bytecode,
    "docstrings": docstrings,
    "headers": headers,
    "licences": licences,
    "manual": manual,
    "unicode": unicode_names,
}


def draw_contexts(
    kind: str,
    present: Sequence[Context],
    usable: Callable[[Context], bool],
    count: int,
    seed: int,
    taken: set[str],
) -> list[Context]:
    """Draw contexts of a kind until there are enough.

    Args:
        kind: A key of ``UNSEEN`` or ``NEW``.
        present: Existing contexts of this kind.
        usable: Whether a context is short enough.
        count: Number of usable contexts to reach, existing ones included.
        seed: Random seed; equal seeds and versions of the sources give equal contexts.
        taken: Fingerprints of user messages that must not repeat; new ones are added.

    Returns:
        The new contexts, all usable.

    Raises:
        ConfigurationError: The source has too few contexts that differ enough.
    """
    known = [set(words(_text(context))) for context in present]
    seen = {gram for context in present for gram in _grams(context)}
    missing = count - sum(map(usable, present))
    added: list[Context] = []
    refused = 0
    for user, reply in (UNSEEN | NEW)[kind](generator(seed, "context sources", kind)):
        if len(added) >= missing or refused > PATIENCE:
            break
        context = exchange(kind, user, reply)
        message, vocabulary, grams = fingerprint(user), set(words(_text(context))), _grams(context)
        refused += 1
        if message in taken or sum(gram in seen for gram in grams) > MOST_SEEN * len(grams):
            continue
        if any(_alike(vocabulary, other) > MOST_ALIKE for other in known) or not usable(context):
            continue
        refused = 0
        taken.add(message)
        known.append(vocabulary)
        seen |= grams
        added.append(context)
    if len(added) < missing:
        total = len(added) + sum(map(usable, present))
        raise ConfigurationError([f"asked for {count} contexts of kind {kind!r}, found {total} here"])
    return added


def repetition(contexts: Sequence[Context]) -> tuple[float, float]:
    """Measure how similar the contexts of a kind are to each other.

    Returns:
        The share (0 to 1) of word 5-grams, counted once for each context, that occur in another context too; and the mean
        number of other contexts whose words have a Jaccard index above ``MOST_ALIKE``. Lower is better for both.
    """
    counts = Counter(gram for context in contexts for gram in _grams(context))
    repeated = sum(count for count in counts.values() if count > 1)
    sets = [set(words(_text(context))) for context in contexts]
    alike = sum(_alike(first, second) > MOST_ALIKE for first, second in combinations(sets, 2))
    return repeated / max(1, counts.total()), 2 * alike / max(1, len(contexts))


def _text(context: Context) -> str:
    return "\n".join(turn.content for turn in context.turns)


def _grams(context: Context) -> set[tuple[str, ...]]:
    """The word 5-grams within each message."""
    return {
        tuple(split[i : i + 5]) for split in (words(turn.content) for turn in context.turns) for i in range(len(split) - 4)
    }


def _alike(first: set[str], second: set[str]) -> float:
    """The Jaccard index of two sets, 0 to 1."""
    return len(first & second) / max(1, len(first | second))
