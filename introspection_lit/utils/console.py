"""What a terminal is shown: texts of files must not move its cursor, colour it or turn its direction round."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from introspection_lit.utils.errors import visible


class PlainConsole(Console):
    """Rich's console for texts that come from files: no markup in them, and no control characters."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as rich shows it; every cell of a table comes through here."""
        return super().render_str(visible(text), **options)
