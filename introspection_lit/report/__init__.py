"""The report: what a run's ``results.json`` says, as a page that people look at."""

from introspection_lit.report.command import Run, figures, labels, load, main, page, render, write

__all__ = ["Run", "figures", "labels", "load", "main", "page", "render", "write"]
