"""Exact influence functions."""
