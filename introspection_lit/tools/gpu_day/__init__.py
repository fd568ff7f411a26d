"""What ``scripts/gpu_day.py`` and ``scripts/gpu_node.py`` run: steps in processes of their own, and their tables.

The process that starts the steps asks torch nothing about GPUs: a part of their memory would be its own.
"""
