"""Errors, files, checksums, paths, limits and named random streams: what every other package uses.

Not here: anything that knows about language models, trials or training.
"""
