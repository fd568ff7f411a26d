"""From the scores of trials to numbers: metrics, intervals, controls, other observers, side effects.

Not here: the callback that collects the scores (``training/callbacks/evidence.py``), and tables of numbers (``report``).
"""
