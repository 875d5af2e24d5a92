"""Handing a finished run on: to the hub, to trainers, and to a training that selects again."""
