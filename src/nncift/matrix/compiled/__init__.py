"""Inner loops compiled by numba, and the memory layouts that they read."""
