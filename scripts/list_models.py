"""Write docs/models.md: which architectures of the installed transformers work, and why others are refused."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"


def main() -> None:
    """Decide about every model type, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write it (default: %(default)s)")
    page_file: Path = parser.parse_args().page
    import transformers

    from introspection_lit.tools.architectures.recipes import model_types
    from introspection_lit.tools.architectures.table import decide, page

    transformers.logging.set_verbosity_error()
    page_file.write_text(page([decide(kind) for kind in model_types()], transformers.__version__), encoding="utf-8")
    print(f"wrote {page_file}")


if __name__ == "__main__":
    main()
