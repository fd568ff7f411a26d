"""Chat templates: where one puts each message of a conversation, and by what it tells them apart.

A template is a program that anybody may have written. It is asked twice: with a word of ours for each text, which shows
what the template itself writes and where, and with the texts. If these are put anywhere else, or are changed, or hold
what the template writes between messages, a text would be read as something that its writer did not say.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from os.path import commonprefix
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.utils.resource_limits import BYTES, limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What stands between brackets, as in <|user|>, [INST] or <<SYS>>: it marks a turn wherever it stands.
_BRACKETED = re.compile(r"[<\[{|\uff5c]+[^\s<>\[\]{}]+[>\]}|\uff5c]+")
# Letters, digits and spaces alone, as the role in "<|im_start|>user": a word of the language if nothing stands before it.
_BARE = re.compile(r"[\w ]*")
# No sign that can be seen: controls, formats (zero width, directions), combining marks.
_UNSEEN = ("Cc", "Cf", "Mn", "Me")


class Layout(NamedTuple):
    """Where a template puts the texts of a conversation.

    Attributes:
        pieces: What it writes before the first text, between each two, and after the last one.
        order: The number of the message that stands in each gap; messages without text have none.
        seam: How many of the characters that the template itself writes belong to the context.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    seam: int

    @property
    def neutral(self) -> str:
        """The conversation with a word for each text."""
        return "word".join(self.pieces)


def template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], prompt: bool) -> str:
    """Write messages (role and text) out; errors of jinja2, or of the template's own, are raised as they are."""
    asked = [{"role": role, "content": content} for role, content in messages]
    with limited(memory=BYTES):
        return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=prompt))


def layout(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], filled: Sequence[bool], steered: int, again: bool = False
) -> Layout | int:
    """Find out where a template puts texts.

    Args:
        tokenizer: Carries the template.
        roles: Of each message.
        filled: Whether it has any text.
        steered: How many messages belong to the context.
        again: Ask the template again: one that writes the date writes another one tomorrow.

    Returns:
        The layout; or the number of a message that is dropped, repeated, or not on its side of the seam.
    """
    asked = _layout.__wrapped__ if again else _layout
    return asked(tokenizer, str(tokenizer.chat_template), tuple(roles), tuple(filled), steered)


@lru_cache(maxsize=256)
def _layout(
    tokenizer: PreTrainedTokenizerBase, source: str, roles: tuple[str, ...], filled: tuple[bool, ...], steered: int
) -> Layout | int:
    words = [f"Qzx{number}kWv" if has_text else "" for number, has_text in enumerate(filled)]
    messages = list(zip(roles, words, strict=True))
    text = template(tokenizer, messages, True)
    seam = len(commonprefix([template(tokenizer, messages[:steered], False), text]))
    places = {}
    for number, word in enumerate(words):
        if word:
            place = text.find(word)
            inside = place >= 0 and (place + len(word) <= seam if number < steered else place >= seam)
            if not inside or text.count(word) > 1:
                return number
            places[number] = place
    order = sorted(places, key=lambda number: places[number])
    edges = [0, *(edge for number in order for edge in (places[number], places[number] + len(words[number]))), len(text)]
    pieces = tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    return Layout(pieces, tuple(order), seam - sum(len(word) for word in words[:steered]))


def find_texts(text: str, found: Layout, contents: Sequence[str]) -> list[tuple[int, int]] | int:
    """Find the messages in a conversation that was written out, as they are or without white space at their ends.

    Args:
        text: What the template made of them.
        found: Where it puts texts.
        contents: The text of each message.

    Returns:
        Beginning and end of each message, in their own order, (0, 0) if it has no text; or the number of the message from
        which on the template wrote anything else.
    """
    places, at, number = [(0, 0)] * len(contents), len(found.pieces[0]), found.order[0]
    if not text.startswith(found.pieces[0]):
        return number
    for number, piece in zip(found.order, found.pieces[1:], strict=True):
        whole = contents[number]
        for written in (whole, whole.strip(), whole.rstrip(), whole.lstrip()):
            if text.startswith(written + piece, at):
                places[number] = (at, at + len(written))
                at += len(written) + len(piece)
                break
        else:
            return number
    return places if at == len(text) else number


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, source: str) -> dict[int, str]:
    written = source + "".join(found.neutral for found in _usual(tokenizer))
    return {
        number: str(token)
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip() and (token.special or str(token) in written)
    }


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are no text, such as ``<|im_end|>``, by number: special ones, and others that the template writes."""
    return _control_tokens(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=256)
def _controls_of(tokenizer: PreTrainedTokenizerBase, source: str, neutral: str) -> list[int]:
    control = control_tokens(tokenizer)
    return [number for number in tokenizer(neutral, add_special_tokens=False)["input_ids"] if number in control]


def controls_of(tokenizer: PreTrainedTokenizerBase, found: Layout) -> list[int]:
    """The control tokens that a template writes, in order."""
    return _controls_of(tokenizer, str(tokenizer.chat_template), found.neutral)


def marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a template writes between messages as plain text, such as ``### User:``, without white space at its ends."""
    return _marks(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _marks(tokenizer: PreTrainedTokenizerBase, source: str) -> list[str]:
    tokens = sorted(control_tokens(tokenizer).values(), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    found: list[str] = []
    for one in _usual(tokenizer):
        # Before the first text there may be a preamble: what announces the text is at its end.
        for piece in (one.pieces[0].rstrip().rpartition("\n")[2], *one.pieces[1:]):
            lines = [line.strip() for part in control.split(piece) for line in part.split("\n")]
            own = [mark for line in lines for mark in (*_BRACKETED.findall(line), _BRACKETED.sub(" ", line).strip())]
            own = [mark for mark in own if not _BARE.fullmatch(mark)]
            spelt = [mark for mark in own if re.search(r"\w", mark)] or own
            alone = not spelt and not control.search(piece) and piece.strip()
            found += [piece] if alone else spelt
    return list(dict.fromkeys(folded(mark).strip() for mark in found))


def _usual(tokenizer: PreTrainedTokenizerBase) -> list[Layout]:
    """Layouts of one and two exchanges and another question, with and without a system prompt, as far as there are any."""
    layouts = []
    for system, exchanges in product(([], ["system"]), (1, 2)):
        roles = [*system, *["user", "assistant"] * exchanges, "user"]
        try:
            one = layout(tokenizer, roles, [True] * len(roles), len(system) + 2)
        except Exception:  # templates raise errors of jinja2 or of their own
            continue
        layouts += [one] if isinstance(one, Layout) else []
    return layouts


def folded(text: str) -> str:
    """A text as it looks: case, signs that are not seen and kinds of white space make no difference."""
    if not text.isascii():
        text = "".join(
            sign
            for sign in unicodedata.normalize("NFKD", text)
            if sign.isspace() or unicodedata.category(sign) not in _UNSEEN
        )
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f]", "", text)
    return re.sub(r"\s+", " ", text.casefold())


def marks_in(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The control tokens and plain marks that a text holds, each of which would open or close a turn."""
    found = [token for token in control_tokens(tokenizer).values() if token in text]
    plain = marks(tokenizer)
    looks = folded(text) if plain else ""
    return found + [mark for mark in plain if mark in looks]


def same_marks(tokenizer: PreTrainedTokenizerBase, text: str, found: Layout) -> bool:
    """Whether a conversation has each plain mark as often as it has with a word for each text."""
    plain = marks(tokenizer)
    if not plain:
        return True
    looks, neutral = folded(text), folded(found.neutral)
    return all(looks.count(mark) == neutral.count(mark) for mark in plain)
