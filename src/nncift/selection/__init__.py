"""Submodular objectives, greedy maximisation, and the subset that comes out."""
