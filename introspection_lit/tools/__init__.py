"""Code that only the files in ``scripts/`` call: the research pipeline, several seeds, benchmark.

Not here: anything that the command line needs. No other package imports this one.
"""
