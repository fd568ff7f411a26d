"""The page itself: what there is to type, choose and press, and which function each thing calls. Needs Gradio."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from introspection_lit.models.architectures import reach
from introspection_lit.page.curve import draw_curve
from introspection_lit.page.directions import CONCEPT, FORMATS, OWN, RANDOM, SPLITS, OwnDirections, choose, read_own
from introspection_lit.page.examiner import STRENGTHS, Examiner
from introspection_lit.page.showing import cards, codes, escaped, layers, problems, section, tokens
from introspection_lit.page.wording import EXAMPLE_NAMES, EXAMPLES, EXPLANATION, INTRODUCTION
from introspection_lit.steering.bands import named_band
from introspection_lit.steering.specification import Steering
from introspection_lit.utils.errors import ConfigurationError, IntrospectionError, visible

SOURCES = [("a random direction", RANDOM), ("a concept", CONCEPT), ("a file", OWN)]
LEAST, MOST = 0.05, STRENGTHS[-1]
CURVE = "From weak to strong"
WAITING = '<p class="note">Reading the conversation at other strengths …</p>'
BEFORE = '<p class="note">The answers come here. Each takes a few seconds.</p>'


class Page:
    """The functions behind the page; they keep nothing, so that visitors cannot meet.

    Args:
        examiner: Asks the detector.
    """

    def __init__(self, examiner: Examiner) -> None:
        self.examiner, self.detector = examiner, examiner.detector
        self.bank = self.detector.bank
        assert self.bank is not None
        self.n_layers, self.hidden = len(self.detector.layers), int(self.detector.config.hidden_size)
        self.reachable = reach(self.detector.config) or self.n_layers - 1

    def names(self, source: str, own: OwnDirections | None) -> list[str]:
        """The names of the directions of a kind."""
        if source == OWN:
            return list(own.by_name) if own else []
        assert self.bank is not None
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
        try:
            began, conversation = time.monotonic(), (user or "", reply or "")
            steering, band, added = self._steering(source, name, own, numbers)
            findings = self.examiner.compare(conversation, steering)
            shown = "".join(
                (
                    cards(findings, self.detector, added),
                    _notes(conversation, began),
                    section("The same question with the words exchanged", codes(findings, self.examiner)),
                    section("Which layers are steered", layers(band, self.n_layers)),
                    section("Which tokens are steered", self._tokens(conversation)),
                )
            )
            yield shown, section(CURVE, WAITING)
            curve = self.examiner.curve(conversation, steering)
            drawn = draw_curve(findings.clean, curve, (steering.strength, findings.steered))
            yield shown, section(CURVE, drawn)
        except IntrospectionError as error:
            yield problems(error), ""

    def _tokens(self, conversation: tuple[str, str]) -> str:
        return tokens(self.examiner.tokens(conversation), self.detector.tokenizer)

    def _steering(
        self, source: str, name: str | None, own: OwnDirections | None, numbers: tuple[float, ...]
    ) -> tuple[Steering, tuple[int, int], str]:
        """The steering that was chosen, its first and last layer, and what is added in words."""
        assert self.bank is not None
        first, last, strength = numbers
        band = (int(min(first, last)), int(max(first, last)))
        direction = choose(self.bank, own, source, name)
        kinds = {RANDOM: f"random direction {name}", CONCEPT: f"the concept “{name}”", OWN: f"{name}, of your file"}
        return Steering(direction, float(strength), band), band, f"{kinds[source]}, strength {strength:g}"

    def take_file(self, uploaded: str | None) -> tuple[OwnDirections | None, Any, str]:
        """Read a visitor's file, and delete it: what it holds, the list to choose from, and what to say about it."""
        if uploaded is None:
            return None, gr.Dropdown(choices=[], value=None), ""
        path = Path(uploaded)
        try:
            found = read_own(path, self.n_layers, self.hidden)
        except ConfigurationError as error:
            return None, gr.Dropdown(choices=[], value=None), problems(error)
        finally:
            path.unlink(missing_ok=True)
        names = list(found.by_name)
        count = f"{len(names)} direction{'s' if len(names) > 1 else ''}"
        said = f"{visible(path.name)}: {count} for the {self.n_layers} layers of this model."
        sentences = "".join(f'<p class="note">{escaped(sentence)}</p>' for sentence in (said, *found.notes))
        return found, gr.Dropdown(choices=names, value=names[0]), sentences

    def build(self) -> gr.Blocks:
        """Put the page together."""
        middle = named_band("middle", self.n_layers, self.reachable)
        with gr.Blocks(title="Does the model notice?", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Accordion("How to read this", open=False):
                gr.Markdown(EXPLANATION)
            own = gr.State(None, time_to_live=3600)
            gr.Markdown("### 1. The conversation")
            with gr.Row():
                box = {"lines": 3, "max_lines": 8, "min_width": 300}
                user = gr.Textbox(EXAMPLES[0][0], label="The user writes", elem_id="user", **box)
                reply = gr.Textbox(EXAMPLES[0][1], label="The assistant has replied", elem_id="reply", **box)
            gr.Examples(EXAMPLES, [user, reply], label="Or take one of these", example_labels=EXAMPLE_NAMES)
            gr.Markdown("### 2. The steering")
            with gr.Row():
                source = gr.Radio(SOURCES, value=CONCEPT, label="What is added", elem_id="source", min_width=300)
                name = gr.Dropdown(self.names(CONCEPT, None), label="Which one", elem_id="direction", min_width=300)
            with gr.Group(visible=False) as upload:
                file = gr.UploadButton(f"Choose a file ({', '.join(FORMATS)})", file_types=list(FORMATS), elem_id="file")
                about = gr.HTML(elem_classes="shown")
            with gr.Row():
                most = self.reachable - 1
                first = gr.Slider(0, most, middle[0], step=1, label="First layer", elem_id="first", min_width=250)
                last = gr.Slider(0, most, middle[1], step=1, label="Last layer", elem_id="last", min_width=250)
                strength = gr.Slider(LEAST, MOST, 1.0, step=0.05, label="Strength", elem_id="strength", min_width=250)
            button = gr.Button("Ask the model", variant="primary", elem_id="ask")
            gr.Markdown("### 3. What it answers")
            answers = gr.HTML(BEFORE, elem_classes="shown", elem_id="answers")
            curve = gr.HTML(elem_classes="shown", elem_id="curve")
            inputs: list[Any] = [user, reply, source, name, own, first, last, strength]
            button.click(self.ask, inputs, [answers, curve], api_visibility="private", show_progress_on=answers)
            source.change(self._choices, [source, own], [name, upload], api_visibility="private", show_progress="hidden")
            file.upload(self.take_file, file, [own, name, about], api_visibility="private")
        blocks.queue(max_size=20, default_concurrency_limit=1)
        return blocks

    def _choices(self, source: str, own: OwnDirections | None) -> tuple[Any, Any]:
        """The list of directions of a kind, and whether a file can be given."""
        names = self.names(source, own)
        return gr.Dropdown(choices=names, value=names[0] if names else None), gr.Group(visible=source == OWN)


def _notes(conversation: tuple[str, str], began: float) -> str:
    """How long it took; and that an empty reply is unusual."""
    note = f"Both answers in both codes: {time.monotonic() - began:.1f} s."
    if not conversation[1].strip():
        note += " The reply is empty; the detector was trained on replies with text, so its answers say less."
    return f'<p class="note">{note}</p>'
