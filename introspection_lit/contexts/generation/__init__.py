"""Builds more contexts: composed texts, passages from installed packages, and replies that the model writes.

Not here: the built-in contexts, which are in ``assets/contexts.jsonl``.
"""
