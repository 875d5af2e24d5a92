"""Ways of choosing rows, used in one way, and the result of a training: an experiment and its repetitions."""
