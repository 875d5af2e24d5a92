"""What a config names, resolved: influence function, prior network, precision, executor."""
