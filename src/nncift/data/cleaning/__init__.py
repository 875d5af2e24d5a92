"""Samples that are left out: those of test sets, duplicates, near-duplicates."""
