"""Write docs/models.md: which architectures of the installed transformers work, and why others are refused."""

from __future__ import annotations

from pathlib import Path

import transformers

from introspection_lit.tools.architectures.recipes import model_types
from introspection_lit.tools.architectures.table import decide, page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page([decide(kind) for kind in model_types()], transformers.__version__), encoding="utf-8")
    print(f"wrote {PAGE}")
