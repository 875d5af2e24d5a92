"""A model on a test set: the losses and answers of it, and how good they are."""
