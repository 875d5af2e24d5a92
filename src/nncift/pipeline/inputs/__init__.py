"""Samples and their features: reading every side, the first cut, one pass per sample."""
