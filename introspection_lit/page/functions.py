"""The functions behind the page: what is shown of a conversation, and of a visitor's file. Needs no Gradio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from introspection_lit.models.architectures import reach
from introspection_lit.page.curve import draw_curve
from introspection_lit.page.directions import CONCEPT, OWN, RANDOM, SPLITS, OwnDirections, choose, read_own
from introspection_lit.page.examiner import Examiner
from introspection_lit.page.showing import cards, codes, concepts, escaped, layers, problems, section, tokens
from introspection_lit.steering.specification import Steering
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError

CURVE = "From weak to strong"
WAITING = '<p class="note">Reading the conversation at other strengths …</p>'


class TakenFile(NamedTuple):
    """A visitor's file.

    Attributes:
        own: What it holds; None: it cannot be used.
        said: About it, as HTML.
    """

    own: OwnDirections | None
    said: str


class Page:
    """The functions behind the page; they keep nothing, so that visitors cannot meet.

    Args:
        examiner: Asks the detector.
    """

    def __init__(self, examiner: Examiner) -> None:
        self.examiner, self.detector = examiner, examiner.detector
        assert self.detector.bank is not None
        self.bank = self.detector.bank
        self.n_layers, self.hidden = len(self.detector.layers), int(self.detector.config.hidden_size)
        self.reachable = reach(self.detector.config) or self.n_layers - 1

    def names(self, source: str, own: OwnDirections | None) -> list[str]:
        """The names of the directions of a kind."""
        if source == OWN:
            return list(own.by_name) if own else []
        return self.bank.names[SPLITS[source]]

    def ask(
        self, user: str, reply: str, source: str, name: str | None, own: OwnDirections | None, *numbers: float
    ) -> Iterator[tuple[str, str]]:
        """Answer a press of the button: first the answers, then the curve.

        Args:
            user: The message.
            reply: The reply to it.
            source: The kind of direction.
            name: Of the direction.
            own: What the visitor's file holds.
            numbers: First layer, last layer (in either order), and strength.

        Yields:
            HTML of the answers (both states, both codes, layers and tokens) and of the curve; of what is wrong, and nothing
            else, if the input cannot be used.
        """
        conversation = (user or "", reply or "")
        try:
            steering, band, added = self._steering(source, name, own, numbers)
            findings = self.examiner.compare(conversation, steering)
            shown = "".join(
                (
                    cards(findings, self.detector, added),
                    _note(conversation),
                    self._concept(conversation, steering, source, name),
                    section("The same question with the words exchanged", codes(findings, self.examiner)),
                    section("Which layers are steered", layers(band, self.n_layers)),
                    section("Which tokens are steered", self._tokens(conversation)),
                )
            )
        except IntrospectionError as error:
            yield problems(error), ""
            return
        yield shown, section(CURVE, WAITING)
        try:
            curve = self.examiner.curve(conversation, steering)
            drawn = draw_curve(findings.clean, curve, (steering.strength, findings.steered))
        except IntrospectionError as error:  # at a strength that nobody has chosen
            drawn = problems(error, "There is no curve.")
        yield shown, section(CURVE, drawn)

    def _concept(self, conversation: tuple[str, str], steering: Steering, source: str, name: str | None) -> str:
        """Which concept the model says was added, where one was and the adapter has learned to say it."""
        found = self.examiner.name_concept(conversation, steering, name) if source == CONCEPT and name else None
        return "" if found is None else section("Which concept was it?", concepts(*found, str(name)))

    def _tokens(self, conversation: tuple[str, str]) -> str:
        return tokens(self.examiner.tokens(conversation), self.detector.tokenizer)

    def _steering(
        self, source: str, name: str | None, own: OwnDirections | None, numbers: tuple[float, ...]
    ) -> tuple[Steering, tuple[int, int], str]:
        """The steering that was chosen, its first and last layer, and what is added in words."""
        first, last, strength = numbers
        band = (int(min(first, last)), int(max(first, last)))
        direction = choose(self.bank, own, source, name)
        kinds = {RANDOM: f"random direction {name}", CONCEPT: f"the concept “{name}”", OWN: f"{name}, of your file"}
        return Steering(direction, float(strength), band), band, f"{kinds[source]}, strength {strength:g}"

    def take_file(self, uploaded: str | None) -> TakenFile:
        """Read a visitor's file, and delete it."""
        if uploaded is None:
            return TakenFile(None, "")
        path = Path(uploaded)
        try:
            found = read_own(path, self.n_layers, self.hidden)
        except ConfigurationError as error:
            return TakenFile(None, problems(error, "The file is not used."))
        finally:
            path.unlink(missing_ok=True)
        count = f"{len(found.by_name)} direction{'s' if len(found.by_name) > 1 else ''}"
        said = f"{path.name}: {count} for the {self.n_layers} layers of this model."
        return TakenFile(found, "".join(f'<p class="note">{escaped(one)}</p>' for one in (said, *found.notes)))


def _note(conversation: tuple[str, str]) -> str:
    """That an empty reply is unusual, where it is empty."""
    if conversation[1].strip():
        return ""
    return '<p class="note">The reply is empty; the detector was trained on replies with text, so its answers say less.</p>'
