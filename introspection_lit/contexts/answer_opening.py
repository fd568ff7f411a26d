"""Where an answer starts: after the generation prompt of a chat template, or after more that the template writes there.

Templates of reasoning models open a think block in the generation prompt; others write a channel, or an empty think block,
between the role and the text of a reply. An answer prefix right after the generation prompt would stand inside of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

# What opens a block of thoughts, as in <think>, <seed:think>, <|thinking|> or [THINK].
_OPENS = re.compile(r"<\|?(?:\w+:)?(?:think|thinking|thought|reasoning)\|?>|\[THINK\]")
# Variables that switch thoughts off, in the templates that have one.
SWITCHES = ("enable_thinking", "thinking")


class Opening(NamedTuple):
    """The difference between a generation prompt and where an answer starts.

    Attributes:
        removed: The end of the generation prompt that is left out.
        added: What follows instead, in the template's own words.
    """

    removed: str = ""
    added: str = ""

    def complete(self, text: str) -> str:
        """The text of a conversation with its generation prompt, up to where the answer starts."""
        return text.removesuffix(self.removed) + self.added


AS_PROMPTED = Opening()


def open_block(text: str) -> re.Match[str] | None:
    """The tag in a text that opens a block of thoughts, if nothing after it closes the block."""
    tags = list(_OPENS.finditer(text))
    return None if not tags or _closing(tags[-1][0]) in text[tags[-1].end() :] else tags[-1]


def find_opening(prompt: str, reply: str | None, switched_off: Sequence[str], closed: bool) -> Opening:
    """Find where the text of an answer starts.

    Args:
        prompt: What the template writes between the last question and the end of the generation prompt.
        reply: What it writes between the last question and the text of a last reply; None: it refuses such a conversation.
        switched_off: As ``prompt``, with each variable of :data:`SWITCHES` set to false.
        closed: Close a block of thoughts; false: the answer starts inside of it, or where the model may open one.
    """
    tag = open_block(prompt)
    begins = reply is not None and reply.startswith(prompt)
    if begins and reply is not None and open_block(reply) is None:
        more = reply.removeprefix(prompt)
        if not more.strip() or (not closed and (tag or _OPENS.search(more))):
            return AS_PROMPTED
        return Opening(added=more)
    if tag is None or not closed:
        return AS_PROMPTED
    # Other texts that begin as the prompt does before its block: replies with an empty block, prompts without thoughts.
    written = [other for other in (reply, *switched_off) if other and other.startswith(prompt[: tag.start()])]
    written = [other for other in written if open_block(other) is None]
    with_block = [other for other in written if _OPENS.search(other, tag.start())]
    chosen = next(iter(with_block or [other for other in written if other in switched_off]), None)
    if chosen is not None:
        shared = len(prompt) if chosen.startswith(prompt) else tag.start()
        return Opening(prompt[shared:], chosen[shared:])
    line = "\n" if prompt[tag.end() :].endswith("\n") else ""
    return Opening(added=f"{line}{_closing(tag[0])}{line * 2}")


def _closing(tag: str) -> str:
    """The tag that closes the block which a tag opens."""
    start = 2 if tag.startswith("<|") else 1
    return f"{tag[:start]}/{tag[start:]}"
