"""Exact influence functions, a file each."""
