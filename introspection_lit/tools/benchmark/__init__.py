"""Speed of the training step: measurement, comparison with single trials, and formulas for its cost.

Not here: memory estimates, which are in ``models/memory_estimate.py``.
"""
