"""The report: what a run's ``results.json`` says, as a page that people look at."""

from introspection_lit.report.command import labels, load, main, write
from introspection_lit.report.page import Run, figures, page, render

__all__ = ["Run", "figures", "labels", "load", "main", "page", "render", "write"]
