"""How well influence is estimated, and how well it predicts real training."""
