"""The licence of a base model, as its own files say it: the adapter is published under the same."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from introspection_lit.models.base_model import BaseModel
from introspection_lit.models.file_checks import find_file
from introspection_lit.models.random_models import is_random
from introspection_lit.models.sources import gguf_file, resolve

FIELDS = ("license", "license_name", "license_link")


def licence_of(base: BaseModel) -> dict[str, str]:
    """The fields of a model card that name a licence; empty if the model does not say it, or is not there.

    A GGUF file says it in its metadata, a folder or a hub repository in its README.md, which is fetched if it has to be.
    """
    try:
        if is_random(base.name):
            return {}
        if (file := gguf_file(base)) is not None:
            return _of_gguf(file)
        readme = find_file(resolve(base), "README.md")
        card = readme and ModelCard(readme.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, OSError):  # no such model, or no card that can be read
        return {}
    return {name: str(card[name]) for name in FIELDS if card.get(name)} if card else {}


def _of_gguf(file: Path) -> dict[str, str]:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    found = {name: reader.get_field(f"general.{name.replace('_', '.')}") for name in FIELDS}
    return {name: str(field.contents()) for name, field in found.items() if field is not None}
