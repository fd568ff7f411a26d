"""Contexts: the first turns that get steered, their kinds, and how they are split.

A context is one user message and one assistant reply, or whatever comes before the mark in a conversation of the user's
own. Contexts come in *kinds* (chat, Python, French, ...), because an adapter trained on one kind of text takes any other
kind for steering. Every split has contexts of its own, and the split ``newkinds`` has kinds of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

# Sources that are no files: the set that comes with the package, and the one that larger_contexts/build.py makes.
BUILTIN, LARGE = "builtin", "large"


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: Its text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Context:
    """What is steered of a conversation and, if the conversation is the user's own, what is asked after it.

    Attributes:
        kind: What sort of text it is, such as ``python`` or ``french``.
        turns: The messages that are steered. Without a system message the experiment's system prompt comes first.
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
        """All that the user says before the mark."""
        return "\n".join(turn.content for turn in self.turns if turn.role == "user")

    @property
    def question(self) -> str | None:
        """The question of the conversation's own; None if the experiment's question is asked."""
        return next((turn.content for turn in reversed(self.question_turns) if turn.role == "user"), None)

    @property
    def key(self) -> str:
        """A fingerprint of the text, blind to case and white space: equal keys are the same context."""
        if not self.question_turns and [turn.role for turn in self.turns] == ["user", "assistant"]:
            return fingerprint(*(turn.content for turn in self.turns))
        return fingerprint(
            *(f"{turn.role}: {turn.content}" for turn in (*self.turns, Message("mark", ""), *self.question_turns))
        )


def exchange(kind: str, user: str, assistant: str) -> Context:
    """Make the usual context: one message and one reply."""
    return Context(kind, (Message("user", user), Message("assistant", assistant)))


def fingerprint(*texts: str) -> str:
    """Hash texts after folding case and white space, as 16 hexadecimal digits."""
    single = (" ".join(text.casefold().split()) for text in texts)
    folded = "\0".join(text.replace("\1", "\1\1").replace("\0", "\1\2") for text in single)  # no text can hold the seam
    return hashlib.sha256(folded.encode()).hexdigest()[:16]


def unwritable(text: str) -> bool:
    """Whether a text holds what no file can: JSON can spell half of a surrogate pair."""
    return any("\ud800" <= character <= "\udfff" for character in text)
