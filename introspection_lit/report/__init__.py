"""The report: a run's ``results.json`` as one HTML page with figures, and several runs side by side.

Not here: the numbers themselves (``evaluation``). The report reads only ``results.json`` and computes nothing from a model.
"""

from introspection_lit.report.command import load_run, main, run_labels, write_report
from introspection_lit.report.page import Run, build_page, draw_figures, render_html

__all__ = ["Run", "build_page", "draw_figures", "load_run", "main", "render_html", "run_labels", "write_report"]
