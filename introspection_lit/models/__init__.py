"""Base models and adapters, from disk to layers."""
