"""A context: the first turns of a conversation, which are steered, and optionally a question of its own after them.

Usually a context is one user message and one assistant reply; in a conversation file it ends at the message that is marked
``steering_ends``. Every context has a *kind*, its domain of text (chat, Python, French, ...), because an adapter trained on
one domain mistakes other domains for steering. Splits share no contexts, and ``newkinds`` shares no kinds with training.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple

# Names of context sets that are not files: the one in the package, and the larger one of contexts/generation.
BUILTIN, LARGE = "builtin", "large"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: ``system``, ``developer``, ``user`` or ``assistant``.
        content: Its text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Context:
    """The steered turns of a conversation and, for conversation files, the turns that ask about them.

    Attributes:
        kind: The domain of the text, such as ``python`` or ``french``.
        turns: The steered messages. Without a system message the experiment's system prompt comes first.
        question_turns: The messages after it, which end in a question of the conversation's own, and optionally the start
            of the answer. Empty: the experiment's question is asked.
        answers: The words for "steered" and "not steered" that this question calls for, if the file names them.
    """

    kind: str
    turns: tuple[Message, ...]
    question_turns: tuple[Message, ...] = ()
    answers: tuple[str, str] | None = None

    @property
    def user(self) -> str:
        """All user messages of the steered turns, joined by line breaks."""
        return "\n".join(turn.content for turn in self.turns if turn.role == "user")

    @property
    def question(self) -> str | None:
        """The question of the conversation's own; None if the experiment's question is asked."""
        return next((turn.content for turn in reversed(self.question_turns) if turn.role == "user"), None)

    @property
    def key(self) -> str:
        """A hash of the text that ignores case and white space; equal for equal contexts."""
        if not self.question_turns and [turn.role for turn in self.turns] == ["user", "assistant"]:
            return fingerprint(*(turn.content for turn in self.turns))
        return fingerprint(
            *(f"{turn.role}: {turn.content}" for turn in (*self.turns, Message("mark", ""), *self.question_turns))
        )


def exchange(kind: str, user: str, assistant: str) -> Context:
    """Make a context of one user message and one assistant reply."""
    return Context(kind, (Message("user", user), Message("assistant", assistant)))


def fingerprint(*texts: str) -> str:
    """Hash texts, ignoring case and white space, as 16 hexadecimal digits."""
    normalised = (" ".join(text.casefold().split()) for text in texts)
    folded = "\0".join(text.replace("\1", "\1\1").replace("\0", "\1\2") for text in normalised)  # escaped separator
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has half of a surrogate pair, which JSON can spell but no file can hold."""
    return LONE_SURROGATE.search(text) is not None
