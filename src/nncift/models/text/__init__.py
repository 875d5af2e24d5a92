"""The text side of a language model, no weights needed: from samples to token ids."""
