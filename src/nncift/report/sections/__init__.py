"""What the sections of a run's report show, a module for each question that it answers."""
