"""Corrupts clean texts: typing errors, shuffled or reversed words, rare scripts, repeated punctuation.

An adapter that reports steering on such texts has learned "unusual", not "steered". All corruptions keep line breaks, and
all but shuffling keep the order of words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from introspection_lit.utils.errors import ConfigurationError

Corruption = Callable[[str, np.random.Generator], str]
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Adjacent keys of a keyboard: left and right in a row, and the two nearest in the rows above and below.
_NEIGHBOURS = {
    key: "".join(
        _ROWS[r][c]
        for r, c in ((row, at - 1), (row, at + 1), (row - 1, at), (row - 1, at + 1), (row + 1, at - 1), (row + 1, at))
        if 0 <= r < len(_ROWS) and 0 <= c < len(_ROWS[r])
    )
    for row, keys in enumerate(_ROWS)
    for at, key in enumerate(keys)
}
_SLIPS = ("swapped", "dropped", "doubled", "neighbour")
_SLIP_SHARES = (0.4, 0.25, 0.15, 0.2)
# Code points of the first small and first capital of 26 letters; Georgian and Cherokee use the same for both.
_SCRIPTS = {"fullwidth": ("\uff41", "\uff21"), "Georgian": ("\u10d0", "\u10d0"), "Cherokee": ("\u13a0", "\u13a0")}


def typos(text: str, random: np.random.Generator, share: float = 0.5) -> str:
    """Add typing errors: letters swapped, dropped, doubled, or replaced by an adjacent key.

    Args:
        text: A text in any language. Words of three letters or more get at most one error, rarely at the first letter.
        random: The random generator.
        share: Share of these words with an error, 0 to 1; at least one word has one.

    Returns:
        The text with at most two edits (Levenshtein) for each changed word.
    """
    places = [match.span() for match in _WORD.finditer(text) if match.end() - match.start() >= 3]
    if not places:
        return text
    changed = random.random(len(places)) < share
    changed[random.integers(len(places))] = True
    return _replaced(
        text, places, [_slip(text[a:b], random) if t else text[a:b] for (a, b), t in zip(places, changed, strict=True)]
    )


def _slip(word: str, random: np.random.Generator) -> str:
    """Add one typing error to a word of three letters or more; the result differs from the word."""
    how = str(random.choice(_SLIPS, p=_SLIP_SHARES))
    at = int(random.integers(0 if random.random() < 0.1 else 1, len(word)))
    letter = word[at]
    if how == "swapped":
        places = [i for i in range(len(word) - 1) if word[i] != word[i + 1] and word[i : i + 2].isalpha()]
        later = [i for i in places if i > 0] or places
        if later:
            i = int(random.choice(later))
            first, second = word[i], word[i + 1]
            if i == 0 and first.isupper() and second.islower():  # the shift key is held down for the first letter typed
                first, second = first.lower(), second.upper()
            return word[:i] + second + first + word[i + 2 :]
    if how == "neighbour" and letter.lower() in _NEIGHBOURS:
        other = str(random.choice(list(_NEIGHBOURS[letter.lower()])))
        return word[:at] + (other.upper() if letter.isupper() else other) + word[at + 1 :]
    if how == "dropped":
        return word[:at] + word[at + 1 :]
    return word[: at + 1] + word[at:]


def shuffled_words(text: str, random: np.random.Generator) -> str:
    """Permute the words of a text; punctuation, spaces and line breaks stay in place."""
    places = [match.span() for match in _WORD.finditer(text)]
    words = [text[start:end] for start, end in places]
    order = np.arange(len(words))
    for _ in range(10):  # a permutation of two words is the identity half of the time
        random.shuffle(order)
        if [words[i] for i in order] != words:
            break
    return _replaced(text, places, [words[i] for i in order])


def exchanged_words(text: str, random: np.random.Generator, share: float = 0.25) -> str:
    """Exchange some words of a text with each other; all else stays in place.

    Args:
        text: A text in any language.
        random: The random generator.
        share: Share of the words that change places, 0 to 1; at least two where there are two.

    Returns:
        The text with each of these words where another of them was; equal to ``text`` if it has a single word.
    """
    places = [match.span() for match in _WORD.finditer(text)]
    if len(places) < 2:
        return text
    chosen = random.permutation(len(places))[: max(2, round(share * len(places)))]
    words = [text[start:end] for start, end in places]
    moved = {int(to): words[int(of)] for to, of in zip(chosen, np.roll(chosen, 1), strict=True)}
    return _replaced(text, places, [moved.get(number, word) for number, word in enumerate(words)])


def rare_script(text: str, random: np.random.Generator) -> str:
    """Replace the letters a to z by those of a random script: fullwidth Latin, Georgian or Cherokee.

    Letters map in alphabetical order (b becomes the second letter of the script), so the result has no meaning in Georgian
    or Cherokee, but word lengths stay. Only fullwidth Latin keeps capitals. Accented letters do not change.
    """
    small, capital = _SCRIPTS[str(random.choice(list(_SCRIPTS)))]
    table = {ord("a") + i: ord(small) + i for i in range(26)} | {ord("A") + i: ord(capital) + i for i in range(26)}
    return text.translate(table)


def reversed_words(text: str, random: np.random.Generator) -> str:
    """Reverse the letters of every word."""
    return _WORD.sub(lambda match: match[0][::-1], text)


def repeated_punctuation(text: str, random: np.random.Generator) -> str:
    """Repeat each punctuation mark two to six times; a line that ends in a letter or digit gets a mark first."""
    marked = "\n".join(
        line + str(random.choice(["!", "?", "."])) if line[-1:].isalnum() else line for line in text.split("\n")
    )
    return re.sub(r"[.,;:!?\u2026\u3002\u3001\uff01\uff1f]", lambda match: match[0] * int(random.integers(2, 7)), marked)


def make_odd(text: str, how: str, random: np.random.Generator) -> str:
    """Corrupt a text.

    Args:
        text: A text of any length and language.
        how: The corruption, a key of ``ODD``.
        random: The random generator; equal states give equal texts.

    Returns:
        The corrupted text; equal to ``text`` only if there is nothing to change (no letters, a single word to shuffle).

    Raises:
        ConfigurationError: ``how`` is unknown.
    """
    if how not in ODD:
        raise ConfigurationError([f"how: {how!r} is no way to make a text odd. Expected one of: {', '.join(ODD)}."])
    return ODD[how](text, random)


def _replaced(text: str, places: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """Replace the words at some (start, end) places, which are in ascending order."""
    parts, end = [], 0
    for (start, after), word in zip(places, words, strict=True):
        parts += [text[end:start], word]
        end = after
    return "".join([*parts, text[end:]])


ODD: dict[str, Corruption] = {
    "typos": typos,
    "shuffled words": shuffled_words,
    "rare script": rare_script,
    "reversed words": reversed_words,
    "repeated punctuation": repeated_punctuation,
}
