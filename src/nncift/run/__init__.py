"""What a run is: its folder and files, its costs, resumable shards, names that lead to objects."""
