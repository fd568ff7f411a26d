"""Runs ended on purpose; an hour of training, watched."""
