"""What an adapter's introspection.json says: which model it is for, and the question that it was trained to answer."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from introspection_lit.contexts.conversations import Phrasing
from introspection_lit.models.adapter_config import Adapter
from introspection_lit.models.adapters import DESCRIPTION
from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.recorded_settings import validate_settings
from introspection_lit.models.whole_model import as_stored
from introspection_lit.utils import schema
from introspection_lit.utils.errors import ConfigurationError

# What is read here of introspection.json; its threshold, record and options are checked when it is read.
PHRASING = dict.fromkeys((field.name for field in fields(Phrasing)), schema.TEXT)
PHRASING["answers"] = schema.listed(schema.required(schema.TEXT), 2)
PHRASING["thinking"] = schema.choice("closed", "open")
RECORDED = schema.fields(
    "base_model dtype quantization question",
    base_model=schema.TEXT,
    dtype=schema.choice("float32", "bfloat16", "float16"),
    quantization=schema.choice("none", "nf4", "int8"),
    question=schema.TEXTS,
    trained_on=schema.fields(phrasing=schema.fields(" ".join(PHRASING.keys() - {"thinking"}), **PHRASING)),
)


def base_of(adapter: Adapter, base: str | BaseModel | None) -> BaseModel:
    """The base model to load: the one that the adapter was made for, unless another one is given.

    Raises:
        ConfigurationError: No model is named, or a field of ``introspection.json`` is missing or has the wrong type.
    """
    recorded = adapter.description
    if recorded is None and base is None:
        raise ConfigurationError(
            [f"base: got none, and {adapter.name} has no {DESCRIPTION} that names its model. Give its name or folder."]
        )
    if recorded is None:
        return base if isinstance(base, BaseModel) else BaseModel(str(base))
    validate_settings({"model.base.revision": recorded.get("revision")}, str(adapter.folder / DESCRIPTION))
    if wrong := schema.problems(RECORDED, recorded):
        problem = f"{adapter.folder / DESCRIPTION} is damaged, or not ours: {'; '.join(wrong)}. Remove it, or export again."
        raise ConfigurationError([problem])
    if isinstance(base, BaseModel):
        return base
    made_for = BaseModel(
        recorded["base_model"], recorded.get("revision"), recorded["dtype"], quantization=recorded["quantization"]
    )
    return as_stored(made_for if base is None else replace(made_for, name_or_path=base, revision=None))


def recorded_wording(adapter: Adapter) -> dict[str, Any]:
    """What an adapter's training asked and how, and its threshold, as arguments of a detector; none without a record."""
    recorded = adapter.description
    if recorded is None:
        return {}
    phrasing = recorded["trained_on"]["phrasing"]
    known = {name: phrasing[name] for name in PHRASING if name in phrasing}
    return {
        "question": next(iter(recorded["question"]), None),
        "phrasing": Phrasing(**known | {"answers": tuple(phrasing["answers"])}),
        "threshold": float(recorded["threshold"]),
        "prefill_adapter": recorded["trained_on"]["prefill_adapter"],
        "lead_in": recorded.get("options", {}).get("data.lead_in") or "",
        "concepts": tuple(recorded["trained_on"].get("concepts", ())),
    }
