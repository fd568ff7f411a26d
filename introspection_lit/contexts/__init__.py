"""First turns as text, chat templates, and their tokens; ``generation/`` builds the larger set of contexts.

Not here: the question that follows a context (``tasks``), and the trial that uses it (``trials``).
"""
