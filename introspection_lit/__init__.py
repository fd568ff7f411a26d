"""Trains a language model to notice when its activations are being steered, and measures whether it does."""

from __future__ import annotations

import logging

__version__ = "0.1.0"


# While it is imported, bitsandbytes looks for an optional faster 4-bit kernel and warns that it is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
