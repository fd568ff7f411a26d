"""How fast the training step is."""
