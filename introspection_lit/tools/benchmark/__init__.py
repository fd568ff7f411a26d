"""Speed of the training step: measurement, and comparison with training on single trials.

Not here: formulas for its cost (``scripts/scaling.py``), and memory estimates (``models/memory_estimate.py``).
"""
