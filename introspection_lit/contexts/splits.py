"""Distributes contexts over training, validation and test sets, and makes mixed and corrupted sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from introspection_lit.contexts.context import Context, Message, exchange, fingerprint
from introspection_lit.contexts.odd_text import ODD, make_odd
from introspection_lit.utils.errors import ConfigurationError
from introspection_lit.utils.seeds import generator


def split_problems(splits: dict[str, list[Context]], needed: Iterable[str], left_out: int) -> list[str]:
    """Check that splits share no text and that no needed split is empty; a sentence for each problem.

    Args:
        splits: Contexts by split.
        needed: Names of the splits that trials are drawn from.
        left_out: Number of contexts that were left out before, for the message.
    """
    problems = [
        f"data.contexts: the user message {user[:60]!r} is in more than one split: what is tested has been trained on."
        for user in shared_messages(splits)[:5]
    ]
    sizes = ", ".join(f"{name} {len(contexts)}" for name, contexts in splits.items())
    for name in sorted(set(needed)):
        if not splits[name]:
            hint = "Name some kinds in data.test_kinds" if name == "newkinds" else "Give more contexts of each kind"
            problems.append(
                f"data.contexts: no context is left for {name!r} (there are: {sizes}; {left_out} were left out: longer than"
                f" data.max_context_tokens or with control tokens). {hint}, or raise data.max_context_tokens."
            )
    return problems


# Share of each trained kind's contexts that goes to each split.
SHARES = {"train": 0.6, "validation": 0.1, "seen": 0.1, "heldout": 0.1, "concept": 0.1}


def split_contexts(
    contexts: Sequence[Context], seed: int, validation_kinds: Sequence[str], test_kinds: Sequence[str]
) -> dict[str, list[Context]]:
    """Distribute contexts over the splits.

    All contexts of ``test_kinds`` go to ``newkinds`` and those of ``validation_kinds`` to ``validation``; every other kind
    is divided by ``SHARES``. Contexts with the same user message stay together; if several kinds share a user message, only
    the alphabetically first one keeps it.

    Args:
        contexts: All contexts, in any order.
        seed: Seed of the distribution.
        validation_kinds: Kinds for validation alone, so that the threshold is also set on text unlike the training text.
        test_kinds: Kinds that neither training nor validation sees.

    Returns:
        Contexts by split: ``train``, ``validation``, ``seen``, ``heldout``, ``concept``, ``newkinds``.

    Raises:
        ConfigurationError: A named kind does not exist, or is in both lists.
    """
    by_kind: dict[str, dict[str, list[Context]]] = defaultdict(lambda: defaultdict(list))
    owner: dict[str, str] = {}
    for context in sorted(contexts, key=lambda context: (context.kind, context.key)):
        message = fingerprint(context.user)
        if owner.setdefault(message, context.kind) == context.kind:
            by_kind[context.kind][message].append(context)
    problems = [
        f"data.{option}: no context is of kind {kind!r}. Kinds there are: {', '.join(sorted(by_kind))}."
        for option, kinds in (("validation_kinds", validation_kinds), ("test_kinds", test_kinds))
        for kind in kinds
        if kind not in by_kind
    ]
    problems += [
        f"data.test_kinds: {kind!r} is in validation_kinds too. A kind can be held out for one of them only."
        for kind in sorted(set(validation_kinds) & set(test_kinds))
    ]
    if problems:
        raise ConfigurationError(problems)

    splits: dict[str, list[Context]] = {name: [] for name in (*SHARES, "newkinds")}
    for kind in sorted(by_kind):
        groups = [by_kind[kind][key] for key in sorted(by_kind[kind])]
        generator(seed, "contexts", kind).shuffle(groups)
        if kind in test_kinds:
            parts = {"newkinds": groups}
        elif kind in validation_kinds:
            parts = {"validation": groups}
        else:
            edges = np.round(np.cumsum([0, *SHARES.values()]) * len(groups)).astype(int)
            parts = {name: groups[edges[i] : edges[i + 1]] for i, name in enumerate(SHARES)}
        for name, members in parts.items():
            splits[name] += [context for group in members for context in group]
    return splits


def shared_messages(splits: dict[str, list[Context]]) -> list[str]:
    """List the user messages that ``train`` or ``validation`` share with each other or with a test set; each is a leak."""
    owners: dict[str, set[str]] = defaultdict(set)
    text = {}
    for name, contexts in splits.items():
        for context in contexts:
            key = fingerprint(context.user)
            owners[key].add(name if name in ("train", "validation") else "test")
            text[key] = context.user
    return [text[key] for key, names in owners.items() if len(names) > 1]


def evenly_spaced(contexts: Sequence[Context], n: int) -> list[Context]:
    """At most n contexts, evenly spaced over the list, which is sorted by kind."""
    return [contexts[place * len(contexts) // n] for place in range(n)] if len(contexts) > n else list(contexts)


# In a mixed set: most contexts of a kind, and the total if there are few kinds.
MOST_OF_A_KIND, MIXED = 6, 200
# Length of messages in rare scripts, in words: each letter is several tokens.
RARE_WORDS = 4


def mix_by_kind(groups: Sequence[Sequence[Context]]) -> list[Context]:
    """Different contexts of several splits, at most six of each kind, or at most 200 in all if there are few kinds."""
    by_kind: dict[str, list[Context]] = {}
    for context in {context.key: context for group in groups for context in group}.values():
        by_kind.setdefault(context.kind, []).append(context)
    most = max(MOST_OF_A_KIND, MIXED // max(len(by_kind), 1))
    return [context for contexts in by_kind.values() for context in contexts[:most]]


# What a context says, first without and then with the signal, where the signal is visible.
SIGNALS = ("No signal was added while you read this.", "A signal was added while you read this.")


def without_signal(text: str) -> str:
    """A message without the signal at its end, if it has one."""
    return next((text.removesuffix(f"\n\n{signal}") for signal in SIGNALS if text.endswith(f"\n\n{signal}")), text)


def visible_signals(contexts: Sequence[Context], signal: str) -> list[Context]:
    """Every context with a text at the end of its first user message that says whether a signal was added."""
    marked = []
    for context in contexts:
        first = next(number for number, turn in enumerate(context.turns) if turn.role == "user")
        turns = list(context.turns)
        turns[first] = turns[first]._replace(content=f"{turns[first].content}\n\n{signal}")
        marked.append(replace(context, turns=tuple(turns)))
    return marked


# Numbered lines are user messages of at most this many characters; each message is used in this many contexts.
LONGEST_LINE, USES_OF_LINE = 50, 3
READ = "I have read all of them."


def line_contexts(contexts: Sequence[Context], seed: int, split: str, lines: int) -> list[Context]:
    """Make contexts of numbered lines, each a short user message of another context; none if there are too few.

    Args:
        contexts: Contexts of a split.
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
        lines: Lines of a context.
    """
    short = list(dict.fromkeys(c.user for c in contexts if len(c.user.splitlines()) == 1 and len(c.user) <= LONGEST_LINE))
    made = []
    for turn in range(USES_OF_LINE):
        order = generator(seed, "lines", split, turn).permutation(len(short))
        for start in range(0, len(short) - lines + 1, lines):
            texts = [short[place] for place in order[start : start + lines]]
            message = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
            made.append(exchange("lines", message, READ))
    return made


# Each context is merged with so many others of its kind.
USES_OF_MERGED = 4


def merged_contexts(contexts: Sequence[Context], seed: int, split: str) -> list[Context]:
    """Make one context of two of a kind: both user messages, then both replies. They are as long as two together.

    Args:
        contexts: Contexts of a split. Those that are not one exchange, or have a question of their own, are left out.
        seed: The experiment's seed.
        split: Name of the split; names the random stream.
    """
    by_kind: dict[str, list[Context]] = defaultdict(list)
    for context in contexts:
        if [turn.role for turn in context.turns] == ["user", "assistant"] and not context.question_turns:
            by_kind[context.kind].append(context)
    made = []
    for kind in sorted(by_kind):
        for turn in range(USES_OF_MERGED):
            order = generator(seed, "merged", split, kind, turn).permutation(len(by_kind[kind]))
            for pair in zip(order[::2], order[1::2], strict=False):
                users, replies = zip(*(by_kind[kind][place].turns for place in pair), strict=True)
                made.append(exchange(kind, *("\n\n".join(turn.content for turn in turns) for turns in (users, replies))))
    return made


def odd_contexts(contexts: Sequence[Context], seed: int) -> list[Context]:
    """Corrupt every context in every way of ``ODD``; the kind becomes ``odd: WAY``. Unchanged texts are left out."""
    corrupted = []
    for context in contexts:
        for how in ODD:
            random = generator(seed, "odd", how, context.key)
            texts = [turn.content for turn in context.turns]
            if how == "rare script":
                texts = [" ".join(text.split()[:RARE_WORDS]) for text in texts]
            turns = [Message(t.role, make_odd(text, how, random)) for t, text in zip(context.turns, texts, strict=True)]
            if [turn.content for turn in turns] != texts:
                corrupted.append(replace(context, kind=f"odd: {how}", turns=tuple(turns)))
    return corrupted
