"""How cost grows with the work: formulas, and measurements of time, memory and files at a list of sizes (docs/scaling.md).

Speed at the usual sizes: ``tools/benchmark``.
"""
