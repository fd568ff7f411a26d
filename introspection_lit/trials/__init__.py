"""Which trial is which, and from trials to tensors."""
