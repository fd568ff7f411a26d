"""The model card of an exported adapter: what it is, and how it is used with plain transformers and PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from introspection_lit.contexts.context import exchange
from introspection_lit.contexts.conversations import encode, messages_of
from introspection_lit.contexts.long_conversations import exchanges_of
from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.whole_model import auto_class, whole_config

if TYPE_CHECKING:
    from introspection_lit.training.exported_adapter import Check
    from introspection_lit.training.run_context import RunContext

LOAD_HUB = """from transformers import {kind}, AutoTokenizer

base = {kind}.from_pretrained({name!r}, {options})
tokenizer = AutoTokenizer.from_pretrained({name!r}{tokenizer})"""
LOAD_LOCAL = """from introspection_lit.model import BaseModel, load_model, load_tokenizer

base = BaseModel({name!r}, {options})
base, tokenizer = load_model(base{device}), load_tokenizer(base{template})"""
# The adapter's folder, in code; and its chat template there and on the hub.
FOLDER = '"this/folder"'
OWN_TEMPLATE = 'open("this/folder/chat_template.jinja", encoding="utf-8").read()'
HUB_TEMPLATE = 'open(hf_hub_download({name!r}, "chat_template.jinja"), encoding="utf-8").read()'
TESTS = "Tests: see `results.json` of the run, if there is one."
CARD = """---
base_model: {base_model}
library_name: peft
tags: [introspection, activation-steering, lora]
---

# An adapter that notices steering

A LoRA adapter for `{base_model}` that answers whether the model's activations were steered while it read the first
turns of a conversation. The clean base model reads those turns, possibly with a direction added to its residual
stream; the adapter only reads the KV cache that this leaves behind.

- Question: "{question}" Answers: {answers}, after the assistant has begun with "{answer_prefix}".
- Score: logit({yes}) - logit({no}). Steered if above {threshold:.4f}, the threshold chosen on validation data.
- Trained on {train_vectors} random directions, bands {bands}, strengths {strengths} ({strength_unit}){begun}.
- Trained on conversations of {lengths}. Clean ones that are longer may be called steered.
- Validation AUROC {auroc:.4f} at step {step}. {tests}

## Use

```python
from peft import PeftModel
{load_base}
model = PeftModel.from_pretrained(base, {folder}).eval()
messages = [
{messages}
]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True){cut} + {start!r}
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
logits = model(**inputs).logits[0, -1]
print(float(logits[{yes_id}] - logits[{no_id}]))  # steered if above {threshold:.4f}
```

{activation}

It was trained on questions about steering and has not been tested as a chat model. Everything that defines it is in
`{description}`.
"""
ACTIVATED = """The adapter is *activated*: by `alora_invocation_tokens` in `adapter_config.json` it is off until the text

    {words}

and acts from there on. The model reads everything before them, and every conversation without them, as if there were no
adapter.
{checked}
- It needs PEFT 0.18 or later, and `PeftModel`: `AutoModelForCausalLM.from_pretrained(folder)` and `load_adapter` of
  transformers load it without a word, and it never acts.
- One pass as above and plain `generate` are right. `generate` with `use_cache=False` or `prefill_chunk_size`, and
  decoding by hand after the first token, switch it off in part.
- Of several such questions in one text only the last is read by the adapter.
- The base model must be as it was in training: {precision}."""
CHECKED = """
At export one pass of `PeftModel` was compared with the protocol of the training on {trials} validation trials: the
log-odds differ by at most {largest_difference:.1e}. The lines above print about {example:.2f}. If they print about
{example_without:.2f}, the adapter does not act.
"""
ALWAYS_ON = """**The adapter acts on everything it reads.** It cannot be activated by its question: {reason} Loaded by
`PeftModel` and left on it also reads the conversation, which it was not trained for unless `prefill_adapter` in
`{description}` is true: it may call every conversation steered, and answer other questions with its answer words. Read
the conversation into a KV cache with `model.disable_adapter()`, and ask with the adapter on; `Detector` of
introspection_lit does so."""
# The conversation in the card: a clean one.
EXAMPLE = exchange("chat", "What is the capital of France?", "The capital of France is Paris.")


def example_tokens(run: RunContext, question: str) -> tuple[list[int], list[int]]:
    """The tokens of the card's conversation and question, and those of the two answer words."""
    encoded = encode(run.wording.tokenizer, EXAMPLE, question, run.phrasing)
    return encoded.context_ids + encoded.question_ids, list(run.wording.answer_ids)


def model_card(
    base: BaseModel, run: RunContext, description: dict[str, Any], reason: str | None, check: Check | None
) -> str:
    """The text of an exported adapter's ``README.md``.

    Args:
        base: The base model.
        run: The run that trained the adapter.
        description: Content of ``introspection.json``.
        reason: Why the adapter is not activated by its question; None if it is.
        check: What it says in one pass; None if that could not be tried.
    """
    question, words = description["question"][0], run.phrasing.answers
    messages, opening, start = messages_of(run.wording.tokenizer, EXAMPLE, question, run.phrasing)
    shown = [f"    {json.dumps({'role': role, 'content': text}, ensure_ascii=False)}," for role, text in messages]
    if reason is not None:
        activation = ALWAYS_ON.format(reason=reason, description=DESCRIPTION)
    else:
        activation = ACTIVATED.format(
            words=json.dumps(description["invocation"], ensure_ascii=False),
            checked=CHECKED.format(**check._asdict()) if check is not None else "",
            precision=f"{base.dtype}, quantization {base.quantization}",
        )
    return CARD.format(
        **description | {"question": question},
        yes=words[0],
        no=words[1],
        yes_id=run.wording.answer_ids[0],
        no_id=run.wording.answer_ids[1],
        auroc=description["validation"]["auroc"],
        tests=TESTS,
        folder=FOLDER,
        lengths=_lengths(run),
        begun=beginning(description["options"]),
        description=DESCRIPTION,
        load_base=_loading_code(base, auto_class(whole_config(base)).__name__, run.options.chat_template is not None),
        messages="\n".join(shown),
        start=opening.added + start,
        cut=f".removesuffix({opening.removed!r})" if opening.removed else "",
        activation=activation,
    )


def on_hub(card: str, name: str) -> str:
    """The text of a model card, with what it says of a local folder changed to a repository of the hub.

    Args:
        card: From :func:`model_card`, of this version or an earlier one.
        name: The repository's id.
    """
    if OWN_TEMPLATE in card:
        first = "from peft import PeftModel\n"
        card = card.replace(first, f"from huggingface_hub import hf_hub_download\n{first}")
        card = card.replace(OWN_TEMPLATE, HUB_TEMPLATE.format(name=name))
    return card.replace(FOLDER, repr(name)).replace(TESTS, "Tests: below, and in `results.json`.")


def beginning(options: Mapping[str, Any]) -> str:
    """What ``options`` of ``introspection.json`` say of signs, curriculum and dither, to follow the strengths."""
    said = ", added or subtracted" if options.get("data.both_signs") else ""
    if curriculum := options.get("data.curriculum"):
        (low, high), trials = curriculum["strengths"], curriculum["trials"]
        if [low, high] != [*options.get("data.strengths", ())]:
            said += f", moving there from {low:g} to {high:g} in the first {trials} trials"
        said += f", merged contexts after the first {trials} trials" if curriculum.get("merged_after") else ""
    return said + (f", against clean contexts at {dither:g}" if (dither := options.get("data.dither")) else "")


def _lengths(run: RunContext) -> str:
    """Exchanges and tokens of the contexts that were trained on."""
    exchanges = max(map(exchanges_of, run.splits["train"].contexts))
    shown = "one exchange" if exchanges == 1 else f"up to {exchanges} exchanges"
    return f"{shown} and {run.options.longest_trained} tokens"


def _loading_code(base: BaseModel, kind: str = "AutoModelForCausalLM", own_template: bool = False) -> str:
    """Python that loads the base model as in training; from the hub without this package, unless it is quantised.

    Args:
        base: The base model.
        kind: Its class in ``transformers``.
        own_template: The adapter's folder has the chat template.
    """
    plain = base.on_hub and base.quantization == "none"
    files = {"revision": base.revision, "trust_remote_code": base.trust_remote_code or None}
    options = files | {"dtype": base.dtype} | ({} if plain else {"quantization": base.quantization})
    options |= {"quant_storage": base.quant_storage} if base.quantization == "nf4" else {}
    code = (LOAD_HUB if plain else LOAD_LOCAL).format(
        kind=kind,
        name=base.name,
        options=", ".join(_as_python(options)),
        tokenizer="".join(f", {option}" for option in _as_python(files)),
        device="" if base.quantization == "none" else ', "cuda"',
        template=f", {OWN_TEMPLATE}" if own_template else "",
    )
    return f"{code}\ntokenizer.chat_template = {OWN_TEMPLATE}" if plain and own_template else code


def _as_python(options: dict[str, Any]) -> list[str]:
    """Keyword arguments; those that are None are left out."""
    return [f"{name}={value!r}" for name, value in options.items() if value is not None]
