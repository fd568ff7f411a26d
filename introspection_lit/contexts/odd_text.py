"""Clean texts made odd: slips of the keyboard, shuffled or reversed words, rare letters, too much punctuation.

An adapter that alarms at such texts has learned "unusual" and not "steered". Every way keeps the line breaks, and all but
shuffling keep the order of the words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from introspection_lit.utils.errors import ConfigurationError

Way = Callable[[str, np.random.Generator], str]
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Keys that touch on a keyboard: left and right in a row, and the two nearest of the rows above and below.
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
# The first of 26 letters in a row; the small and the capital letters of fullwidth Latin are apart.
_SCRIPTS = {"fullwidth": ("\uff41", "\uff21"), "Georgian": ("\u10d0", "\u10d0"), "Cherokee": ("\u13a0", "\u13a0")}


def typos(text: str, random: np.random.Generator, share: float = 0.5) -> str:
    """Let fingers slip: letters swapped, dropped, doubled, or hit beside the key that was meant.

    Args:
        text: Of any language; only words of three letters or more are touched, once each, most often not at the first
            letter.
        random: Decides where and how.
        share: Of those words with a slip, from 0 to 1. One word has a slip in any case, if there is one to touch.

    Returns:
        The text with at most two edits (Levenshtein) for each word that was touched.
    """
    places = [match.span() for match in _WORD.finditer(text) if match.end() - match.start() >= 3]
    if not places:
        return text
    touched = random.random(len(places)) < share
    touched[random.integers(len(places))] = True
    return _replaced(
        text, places, [_slip(text[a:b], random) if t else text[a:b] for (a, b), t in zip(places, touched, strict=True)]
    )


def _slip(word: str, random: np.random.Generator) -> str:
    """One slip in a word of three letters or more; the word comes out different."""
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
    """Deal the words of a text out anew over their places; punctuation, spaces and lines stay where they are."""
    places = [match.span() for match in _WORD.finditer(text)]
    words = [text[start:end] for start, end in places]
    order = np.arange(len(words))
    for _ in range(10):  # a text of two words comes back in order every other time
        random.shuffle(order)
        if [words[i] for i in order] != words:
            break
    return _replaced(text, places, [words[i] for i in order])


def rare_script(text: str, random: np.random.Generator) -> str:
    """Write the letters a to z in one other script, drawn at random: fullwidth Latin, Georgian or Cherokee.

    The letters go over in alphabetical order (b becomes the second letter of the script), so Georgian and Cherokee spell
    nothing in their languages, but every word keeps its shape. They have no capitals here. Accented letters stay.
    """
    small, capital = _SCRIPTS[str(random.choice(list(_SCRIPTS)))]
    table = {ord("a") + i: ord(small) + i for i in range(26)} | {ord("A") + i: ord(capital) + i for i in range(26)}
    return text.translate(table)


def reversed_words(text: str, random: np.random.Generator) -> str:
    """Write every word backwards, each in its place."""
    return _WORD.sub(lambda match: match[0][::-1], text)


def repeated_punctuation(text: str, random: np.random.Generator) -> str:
    """Repeat each mark of punctuation two to six times; a line that ends without one gets some."""
    marked = "\n".join(
        line + str(random.choice(["!", "?", "."])) if line[-1:].isalnum() else line for line in text.split("\n")
    )
    return re.sub(r"[.,;:!?\u2026\u3002\u3001\uff01\uff1f]", lambda match: match[0] * int(random.integers(2, 7)), marked)


def make_odd(text: str, how: str, random: np.random.Generator) -> str:
    """Make a text odd.

    Args:
        text: Of any length and language.
        how: A key of ``ODD``.
        random: Equal states give equal texts.

    Returns:
        The odd text. It equals ``text`` only where the way finds nothing to change (no letters, one word to shuffle).

    Raises:
        ConfigurationError: There is no such way.
    """
    if how not in ODD:
        raise ConfigurationError([f"how: {how!r} is no way to make a text odd. Expected one of: {', '.join(ODD)}."])
    return ODD[how](text, random)


def _replaced(text: str, places: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """The text with other words at some places, which are in order."""
    parts, end = [], 0
    for (start, after), word in zip(places, words, strict=True):
        parts += [text[end:start], word]
        end = after
    return "".join([*parts, text[end:]])


ODD: dict[str, Way] = {
    "typos": typos,
    "shuffled words": shuffled_words,
    "rare script": rare_script,
    "reversed words": reversed_words,
    "repeated punctuation": repeated_punctuation,
}
