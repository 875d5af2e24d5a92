"""Exact influence of some pairs: which pairs, and collecting their values."""
