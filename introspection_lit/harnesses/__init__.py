"""The detection question in other people's evaluation harnesses: lm-evaluation-harness and Inspect AI.

A package imports only from packages below it (ARCHITECTURE.md). This one is beside ``tools``, and no package imports it:
the harnesses do, which are optional, and whoever asks about a run's trials again (``tested_run``).
"""
