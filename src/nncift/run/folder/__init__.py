"""The run folder: where each file lies, the records in it, its repair."""
