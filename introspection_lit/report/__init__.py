"""The report: a run's ``results.json`` as one HTML page with figures, and several runs side by side.

Not here: the numbers themselves (``evaluation``). The report reads only ``results.json`` and computes nothing from a model.
"""

from introspection_lit.report.command import labels, load, main, write
from introspection_lit.report.page import Run, figures, page, render

__all__ = ["Run", "figures", "labels", "load", "main", "page", "render", "write"]
