"""Exact influence of a few pairs (labels, probes, active learning), and the network fitted to them."""
