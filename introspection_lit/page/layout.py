"""The page itself: what there is to type, choose and press, and which function each thing calls. Needs Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from introspection_lit.page.directions import CONCEPT, FORMATS, OWN, RANDOM, OwnDirections
from introspection_lit.page.examiner import STRENGTHS
from introspection_lit.page.functions import Page
from introspection_lit.page.wording import EXAMPLE_NAMES, EXAMPLES, EXPLANATION, INTRODUCTION
from introspection_lit.steering.bands import named_band

SOURCES = [("a random direction", RANDOM), ("a concept", CONCEPT), ("a file", OWN)]
LEAST, MOST = 0.05, STRENGTHS[-1]
BEFORE = '<p class="note">The answers come here. Each takes a few seconds.</p>'


def build(page: Page) -> gr.Blocks:
    """Put the page together.

    Args:
        page: The functions behind it.
    """
    middle = named_band("middle", page.n_layers, page.reachable)

    def choices(source: str, own: OwnDirections | None) -> tuple[Any, Any]:
        """The list of directions of a kind, and whether a file can be given."""
        names = page.names(source, own)
        return gr.Dropdown(choices=names, value=names[0] if names else None), gr.Column(visible=source == OWN)

    def take_file(uploaded: str | None) -> tuple[OwnDirections | None, Any, str]:
        """Read a visitor's file: what it holds, the list to choose from, and what is said about it."""
        own, said = page.take_file(uploaded)
        return own, choices(OWN, own)[0], said

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
            name = gr.Dropdown(page.names(CONCEPT, None), label="Which one", elem_id="direction", min_width=300)
        with gr.Column(visible=False) as upload:
            file = gr.UploadButton(f"Choose a file ({', '.join(FORMATS)})", file_types=list(FORMATS), elem_id="file")
            about = gr.HTML(elem_classes="shown")
        with gr.Row():
            most = page.reachable - 1
            first = gr.Slider(0, most, middle[0], step=1, label="First layer", elem_id="first", min_width=250)
            last = gr.Slider(0, most, middle[1], step=1, label="Last layer", elem_id="last", min_width=250)
            strength = gr.Slider(LEAST, MOST, 1.0, step=0.05, label="Strength", elem_id="strength", min_width=250)
        button = gr.Button("Ask the model", variant="primary", elem_id="ask")
        gr.Markdown("### 3. What it answers")
        answers = gr.HTML(BEFORE, elem_classes="shown", elem_id="answers")
        curve = gr.HTML(elem_classes="shown", elem_id="curve")
        inputs: list[Any] = [user, reply, source, name, own, first, last, strength]
        button.click(page.ask, inputs, [answers, curve], api_visibility="private", show_progress_on=answers)
        source.change(choices, [source, own], [name, upload], api_visibility="private", show_progress="hidden")
        file.upload(take_file, file, [own, name, about], api_visibility="private")
    blocks.queue(max_size=20, default_concurrency_limit=1)
    return blocks
