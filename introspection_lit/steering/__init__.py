"""Directions, how they are added, and the KV caches that result."""
