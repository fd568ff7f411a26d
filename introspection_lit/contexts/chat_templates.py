"""Chat templates: where a template puts each message of a conversation, and what it writes between messages.

A template is an untrusted program. It is run twice: with a placeholder word for each text, which shows what the template
itself writes and where, and with the texts. A conversation is rejected if a text moves or changes, or holds something that
the template writes between messages: the model would read it as other turns than the user's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from os.path import commonprefix
from typing import TYPE_CHECKING, NamedTuple

from introspection_lit.contexts.answer_opening import AS_PROMPTED, SWITCHES, Opening, find_opening, open_block
from introspection_lit.utils.resource_limits import BYTES, limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Text in brackets, as in <|user|>, [INST] or <<SYS>>, which marks a turn anywhere in a text.
_BRACKETED = re.compile(r"[<\[{|\uff5c]+[^\s<>\[\]{}]+[>\]}|\uff5c]+")
# Letters, digits and spaces alone, as the role in "<|im_start|>user": without the bracket it is an ordinary word.
_BARE = re.compile(r"[\w ]*")
# Unicode categories of invisible characters: controls, formats (zero width, directions), combining marks.
_UNSEEN = ("Cc", "Cf", "Mn", "Me")


class Layout(NamedTuple):
    """Where a template puts the texts of a conversation.

    Attributes:
        pieces: What the template writes before the first text, between texts, and after the last one.
        order: Index of the message in each gap between pieces; messages without text have none.
        boundary: Number of the template's own characters that belong to the context.
        rewritten: The template writes the messages of the context otherwise where no others follow, as templates do that
            put a think block into the last reply alone.
        opening: What the last piece has beyond the generation prompt.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    boundary: int
    rewritten: bool = False
    opening: Opening = AS_PROMPTED

    def before_question(self, steered: int) -> int:
        """Characters of the template between the context, of so many texts, and the first text of the question."""
        return sum(map(len, self.pieces[: steered + 1])) - self.boundary

    @property
    def neutral(self) -> str:
        """The conversation with a placeholder word for each text."""
        return "word".join(self.pieces)


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], prompt: bool, **variables: bool
) -> str:
    """Apply the template to messages (role and text); errors of jinja2 or of the template pass through.

    Args:
        tokenizer: Has the template.
        messages: Role and text of each.
        prompt: Add the generation prompt.
        variables: Further variables of the template.
    """
    conversation = [{"role": role, "content": content} for role, content in messages]
    with limited(memory=BYTES):
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt, **variables)
    return str(text)


def find_layout(
    tokenizer: PreTrainedTokenizerBase,
    roles: Sequence[str],
    filled: Sequence[bool],
    steered: int,
    again: bool = False,
    closed: bool = True,
) -> Layout | int:
    """Find out where a template puts texts.

    Args:
        tokenizer: Has the template.
        roles: Role of each message.
        filled: Whether each message has any text.
        steered: Number of messages that belong to the context.
        again: Ignore the cache: a template that writes the date changes from day to day.
        closed: The answer starts after a block of thoughts, not inside of it.

    Returns:
        The layout; or the index of a message that is dropped, repeated, or on the wrong side of the context's end.
    """
    find = _layout.__wrapped__ if again else _layout
    return find(tokenizer, str(tokenizer.chat_template), tuple(roles), tuple(filled), steered, closed)


@lru_cache(maxsize=256)
def _layout(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    roles: tuple[str, ...],
    filled: tuple[bool, ...],
    steered: int,
    closed: bool,
) -> Layout | int:
    words = [f"Qzx{number}kWv" if has_text else "" for number, has_text in enumerate(filled)]
    messages = list(zip(roles, words, strict=True))
    text = apply_template(tokenizer, messages, True)
    alone = apply_template(tokenizer, messages[:steered], False)
    places = {number: text.find(word) for number, word in enumerate(words) if word}
    boundary, rewritten = len(commonprefix([alone, text])), False
    if any(places[number] + len(words[number]) > boundary for number in places if number < steered):
        boundary, rewritten = _end_in_whole(alone, text, words[:steered], places), True
    elif not filled[steered - 1]:
        # Nothing of an empty reply shows whether the template writes the last one otherwise.
        full = _layout(tokenizer, source, roles, (*filled[: steered - 1], True, *filled[steered:]), steered, closed)
        if not isinstance(full, int) and full.rewritten:
            after = min(place for number, place in places.items() if number >= steered)
            boundary, rewritten = max(after - full.before_question(sum(filled[: steered - 1]) + 1), 0), True
    for number, place in places.items():
        inside = place >= 0 and (place + len(words[number]) <= boundary if number < steered else place >= boundary)
        if not inside or text.count(words[number]) > 1:
            return number
    opening = _opening(tokenizer, messages, text, closed)
    text = opening.complete(text)
    order = sorted(places, key=lambda number: places[number])
    edges = [0, *(edge for number in order for edge in (places[number], places[number] + len(words[number]))), len(text)]
    pieces = tuple(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    return Layout(pieces, tuple(order), boundary - sum(len(word) for word in words[:steered]), rewritten, opening)


def _end_in_whole(alone: str, text: str, words: Sequence[str], places: dict[int, int]) -> int:
    """Where a context ends in a whole conversation, if the template writes it otherwise without what follows.

    The last reply keeps what closes it: this is what follows its text, alone as in the whole.
    """
    last = next(number for number in reversed(range(len(words))) if words[number])
    start, end = alone.find(words[last]), places[last] + len(words[last])
    if start < 0 or places[last] < 0:
        return 0
    return end + len(commonprefix([alone[start + len(words[last]) :], text[end:]]))


def _opening(tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], text: str, closed: bool) -> Opening:
    """Where an answer to the last message starts; as prompted if the template does not show it."""
    (role, asked), word = messages[-1], "Qzx_replykWv"
    if role != "user":
        return AS_PROMPTED
    if not asked:
        asked = "Qzx_askedkWv"
        messages = [*messages[:-1], (role, asked)]
        text = apply_template(tokenizer, messages, True)
    prompt = text.partition(asked)[2]

    def after(more: Sequence[tuple[str, str]], **variables: bool) -> str | None:
        try:
            return apply_template(tokenizer, [*messages, *more], not more, **variables).partition(asked)[2]
        except Exception:  # templates raise errors of jinja2 or of their own
            return None

    reply = after([("assistant", word)])
    reply = reply.partition(word)[0] if reply and word in reply else None
    off = [after([], **{name: False}) for name in SWITCHES] if open_block(prompt) else []
    return find_opening(prompt, reply, [other for other in off if other], closed)


def find_texts(text: str, layout: Layout, contents: Sequence[str]) -> list[tuple[int, int]] | int:
    """Find the messages in the text of a conversation, unchanged or without white space at their ends.

    Args:
        text: Output of the template.
        layout: Where the template puts texts.
        contents: Text of each message.

    Returns:
        (start, end) of each message in ``text``, (0, 0) if it is empty; or the index of the first message that the template
        has changed.
    """
    places, at, number = [(0, 0)] * len(contents), len(layout.pieces[0]), layout.order[0]
    if not text.startswith(layout.pieces[0]):
        return number
    for number, piece in zip(layout.order, layout.pieces[1:], strict=True):
        content = contents[number]
        for variant in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(variant + piece, at):
                places[number] = (at, at + len(variant))
                at += len(variant) + len(piece)
                break
        else:
            return number
    return places if at == len(text) else number


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, source: str) -> dict[int, str]:
    template_text = source + "".join(layout.neutral for layout in _usual_layouts(tokenizer))
    return {
        number: str(token)
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip() and (token.special or str(token) in template_text)
    }


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Control tokens such as ``<|im_end|>`` by id: special tokens, and added tokens that the template writes."""
    return _control_tokens(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=256)
def _layout_control_tokens(tokenizer: PreTrainedTokenizerBase, source: str, neutral: str) -> list[int]:
    control = control_tokens(tokenizer)
    return [number for number in tokenizer(neutral, add_special_tokens=False)["input_ids"] if number in control]


def layout_control_tokens(tokenizer: PreTrainedTokenizerBase, layout: Layout) -> list[int]:
    """Ids of the control tokens that the template itself writes in a conversation, in order."""
    return _layout_control_tokens(tokenizer, str(tokenizer.chat_template), layout.neutral)


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Plain-text marks that a template writes between messages, such as ``### User:``, stripped."""
    return _turn_marks(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _turn_marks(tokenizer: PreTrainedTokenizerBase, source: str) -> list[str]:
    tokens = sorted(control_tokens(tokenizer).values(), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    marks: list[str] = []
    for layout in _usual_layouts(tokenizer):
        # There may be a preamble before the first text, which ends in the mark.
        for piece in (layout.pieces[0].rstrip().rpartition("\n")[2], *layout.pieces[1:]):
            lines = [line.strip() for part in control.split(piece) for line in part.split("\n")]
            own = [mark for line in lines for mark in (*_BRACKETED.findall(line), _BRACKETED.sub(" ", line).strip())]
            own = [mark for mark in own if not _BARE.fullmatch(mark)]
            spelt = [mark for mark in own if re.search(r"\w", mark)] or own
            alone = not spelt and not control.search(piece) and piece.strip()
            marks += [piece] if alone else spelt
    return list(dict.fromkeys(fold(mark).strip() for mark in marks))


def _usual_layouts(tokenizer: PreTrainedTokenizerBase) -> list[Layout]:
    """Layouts of one and two exchanges with a question after them, with and without a system prompt, where possible."""
    layouts = []
    for system, exchanges in product(([], ["system"]), (1, 2)):
        roles = [*system, *["user", "assistant"] * exchanges, "user"]
        try:
            result = find_layout(tokenizer, roles, [True] * len(roles), len(system) + 2)
        except Exception:  # templates raise errors of jinja2 or of their own
            continue
        layouts += [result] if isinstance(result, Layout) else []
    return layouts


def fold(text: str) -> str:
    """Normalise a text to what a reader sees: fold case, drop invisible characters, merge white space."""
    if not text.isascii():
        text = "".join(
            character
            for character in unicodedata.normalize("NFKD", text)
            if character.isspace() or unicodedata.category(character) not in _UNSEEN
        )
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f]", "", text)
    return re.sub(r"\s+", " ", text.casefold())


def find_marks(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The control tokens and turn marks in a text, each of which would open or close a turn."""
    tokens = [token for token in control_tokens(tokenizer).values() if token in text]
    plain_marks = turn_marks(tokenizer)
    visible = fold(text) if plain_marks else ""
    return tokens + [mark for mark in plain_marks if mark in visible]


def has_same_marks(tokenizer: PreTrainedTokenizerBase, text: str, layout: Layout) -> bool:
    """Whether a conversation has each turn mark as often as with placeholder words."""
    plain_marks = turn_marks(tokenizer)
    visible, neutral = (fold(text), fold(layout.neutral)) if plain_marks else ("", "")
    return all(visible.count(mark) == neutral.count(mark) for mark in plain_marks)
