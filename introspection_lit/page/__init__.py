"""A page to try a detector in a browser: ``introspection-lit serve``. Needs the extra ``[page]`` (Gradio), on first use.

Not here: the scores (``detector.py`` and ``one_cache.py``, which ``examiner.py`` asks) and how they are made
(``steering``, ``tasks``).
"""

from introspection_lit.page.command import main

__all__ = ["main"]
