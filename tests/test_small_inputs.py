"""What people bring, through whole commands: rows in the forms they have, chat templates of reasoning models, vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from project_paths import CONFIG
from run_scripts import options, script

from introspection_lit.cli import main
from introspection_lit.steering.vector_bank import VectorBank

LAYERS, HIDDEN = 6, 32  # of the tiny model
PLACES = [
    "the harbour",
    "a meadow",
    "the attic",
    "our kitchen",
    "the old mill",
    "a tunnel",
    "the bakery",
    "a glacier",
    "the market",
    "a canyon",
]
PAIRS = [(f"Have you been to {place}?", f"Only in stories about {place}, sadly.") for place in PLACES]


def messages(user: str, reply: str, **first: Any) -> list[dict[str, Any]]:
    """An exchange, after other messages."""
    return [*first.values(), {"role": "user", "content": user}, {"role": "assistant", "content": reply}]


def parts(text: str) -> list[dict[str, str]]:
    """A content of two text parts."""
    return [{"type": "text", "text": part} for part in text.split(" ", 1)]


ROWS = {
    "developer": [{"messages": messages(*pair, d={"role": "developer", "content": "Stay calm."})} for pair in PAIRS],
    "parts": [{"messages": messages(parts(user), parts(reply))} for user, reply in PAIRS],  # type: ignore[arg-type]
    "ShareGPT": [
        {"kind": "chat", "conversations": [{"from": "human", "value": user}, {"from": "gpt", "value": reply}]}
        for user, reply in PAIRS
    ],
    "prompt": [{"prompt": user, "completion": reply} for user, reply in PAIRS],
}
START = "<|im_start|>assistant\n"
TEMPLATES = {
    "none": None,
    # As Qwen3's: what is empty of thoughts is written into the last reply alone, and into the prompt on demand.
    "last reply": (
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' and loop.last -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
        "{%- endif -%}"
    ),
    # As distillations of R1: no mark before the system prompt, replies without thoughts, an open block in the prompt.
    "prompt opens": (
        "{%- for m in messages -%}{%- if m.role in ('system', 'developer') -%}{{ m.content }}"
        "{%- elif m.role == 'user' -%}{{ '<start_of_turn>' + m.content }}"
        "{%- else -%}{{ '<end_of_turn>' + m.content.split('</think>')[-1] + '<|im_end|>' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<end_of_turn><think>\n' }}{%- endif -%}"
    ),
}
ANSWERS = {
    "none": f"{START}The answer is",
    "last reply": f"{START}<think>\n\n</think>\n\nThe answer is",
    "prompt opens": "<end_of_turn><think>\n\n</think>\n\nThe answer is",
}


@pytest.mark.parametrize(
    ("form", "template"),
    [*((form, "none") for form in ROWS), ("developer", "last reply"), ("developer", "prompt opens")],
)
def test_rows_and_templates(
    form: str,
    template: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The text that a trial has: every word of the row is steered, and the answer starts where one starts."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, ROWS[form])), encoding="utf-8")
    words = ["--config", CONFIG, "--model.base.name_or_path", str(tiny), "--data.contexts", "rows.jsonl"]
    if source := TEMPLATES[template]:
        Path("mine.jinja").write_text(source, encoding="utf-8")
        words += ["--data.chat_template", "mine.jinja"]
    main(["show", *words, "--data.test_trials", "{heldout: 2}", "--trial", "heldout:1"])
    printed = capsys.readouterr().out
    steered, _, asked = printed.partition("\n⟦")[2].partition("⟧")  # the legend has these signs, too
    user, reply = next(pair for pair in PAIRS if pair[1].partition("about ")[2] in steered)
    for text in ("Stay calm.",) * (form == "developer") + ((user, reply) if form != "parts" else ()):
        assert text in steered
    if form == "parts":
        assert user.replace(" ", "\n", 1) in steered
    assert f"{ANSWERS[template]}▮" in asked
    assert steered.count("</think>") == 0


def test_directions_in_the_forms_that_people_have(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers and embeddings, keys that name layers, and numpy's file: a bank whose rows are those of the files."""
    numbers = torch.randn(4, LAYERS + 1, HIDDEN, generator=torch.Generator().manual_seed(3))
    torch.save(numbers[0], tmp_path / "states.pt")
    torch.save({f"layer_{layer}": numbers[1, layer] for layer in range(LAYERS)}, tmp_path / "named.pt")
    np.save(tmp_path / "plain.npy", numbers[2, 0].numpy())
    torch.save({-layer: numbers[3, layer] for layer in (1, 2)}, tmp_path / "negative.pt")
    generate = script("generate_vectors").main
    shared = [*options(tiny, tmp_path), "--n-random", "4", "--data.validation_vectors", "2", "--import"]
    files = [str(tmp_path / name) for name in ("states.pt", "named.pt", "plain.npy")]
    with pytest.warns(UserWarning, match="after a row for the embeddings, which is left out"):
        generate([*shared, *files])
    bank = VectorBank.load(tmp_path / "vectors.safetensors")
    assert bank.names["imported"] == ["states", "named", "plain"]
    expected = torch.stack([numbers[0, 1:], numbers[1, :-1], numbers[2, :1].expand(LAYERS, -1)])
    torch.testing.assert_close(bank.directions["imported"], torch.nn.functional.normalize(expected, dim=-1))
    generate([*shared, files[0], "--layout", "directions"])
    assert len(VectorBank.load(tmp_path / "vectors.safetensors").names["imported"]) == LAYERS + 1
    generate([*shared, files[0], "--layout", "layers+1"])
    bank = VectorBank.load(tmp_path / "vectors.safetensors")
    torch.testing.assert_close(bank.directions["imported"][0], torch.nn.functional.normalize(numbers[0, 1:], dim=-1))
    capsys.readouterr()
    for name, layout, message in (("negative", "auto", "negative layer numbers"), ("states", "layers", "Expected (6, 32)")):
        with pytest.raises(SystemExit):
            generate([*shared, str(tmp_path / f"{name}.pt"), "--layout", layout])
        assert message in capsys.readouterr().err
