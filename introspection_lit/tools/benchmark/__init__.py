"""Speed of the training step: measurement, and comparison with training on single trials.

Not here: formulas for its cost and how it grows (``tools/scaling``), and memory estimates (``models/memory_estimate.py``).
"""
