"""Base models and PEFT adapters: options, sources, loading, checks of their files, and memory estimates.

Not here: hooks and KV caches of a running model (``steering``), and the sharding of a model (``training/fsdp.py``).
"""
