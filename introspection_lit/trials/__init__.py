"""Trials: plans, test sets, manifests and leak checks; and trials as padded tensors.

Not here: steering itself (``steering``), and the data module that uses these (``training``).
"""
