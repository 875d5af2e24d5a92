"""Executors: where the shards of a run's work are computed: in this process, in others on this machine, or on Ray."""
