"""Trains a language model to notice when its activations are being steered, and measures whether it does."""

__version__ = "0.1.0"
