"""Influence by gradients: what a step on a pool sample does to the loss of a target."""
