"""Names that stand in published model cards, and ``python -m introspection_lit.model NAME``."""

import sys

from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import fetch, load_model, load_tokenizer

__all__ = ["BaseModel", "Lora", "fetch", "load_model", "load_tokenizer"]

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m introspection_lit.model NAME: fetches a model of the hub, or unpacks a GGUF file")
    try:
        print(fetch(BaseModel(sys.argv[1])))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
