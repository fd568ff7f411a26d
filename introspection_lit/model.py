"""Names that stand in published model cards, and ``python -m introspection_lit.model NAME``."""

import sys

from introspection_lit.models.base_model import BaseModel, Lora
from introspection_lit.models.loading import fetch, load_model, load_tokenizer

__all__ = ["BaseModel", "Lora", "fetch", "load_model", "load_tokenizer"]

if __name__ == "__main__":
    print(fetch(BaseModel(sys.argv[1])))
