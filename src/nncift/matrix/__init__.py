"""Influence of all pairs, computed block by block and never stored."""
