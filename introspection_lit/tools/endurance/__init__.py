"""Endurance runs: trainings that are killed and resumed (chaos), and an hour of training that is watched (soak).

Not here: how a run stops and resumes, which is in ``training/callbacks`` and ``training/checkpoint_files.py``.
"""
