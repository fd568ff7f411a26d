"""Limits of strengths, apart from what computes with them: reports name them without importing torch."""

# Strengths below the minimum are lost in float32 rounding; above the maximum, squares in a norm overflow.
LEAST_STRENGTH, MOST_STRENGTH = 1e-6, 1e6
