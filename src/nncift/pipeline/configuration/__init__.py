"""The options of a run: their types and groups, and the config of a call."""
