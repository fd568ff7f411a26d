"""The detection question in other people's evaluation harnesses: lm-evaluation-harness and Inspect AI.

A package imports only from packages below it (ARCHITECTURE.md). This one is beside ``tools``, and nothing imports it: the
harnesses do, which are optional.
"""
