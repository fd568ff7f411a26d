"""Callbacks: checkpoints, export, evidence, result files, and what a run does about errors and signals.

Not here: the computations that they call (``evaluation``, ``steering``) and the report that they write (``report``).
"""
