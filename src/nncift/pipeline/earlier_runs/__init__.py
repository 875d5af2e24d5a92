"""Finished runs: opened again, taken over from, grown by appended data."""
