"""Steering vectors, the hooks that add them to the residual stream, and the KV caches that result.

Not here: which trial gets which vector (``trials``), and what is asked about a cache (``tasks``).
"""
