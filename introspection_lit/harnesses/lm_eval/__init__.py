"""For lm-evaluation-harness: the tasks ``introspection`` and ``introspection_clean``, and a model that can be steered."""
