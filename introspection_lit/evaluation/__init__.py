"""From scores of trials to numbers."""
