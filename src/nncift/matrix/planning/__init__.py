"""In which form influence is held for the choice, and what the choice will cost in it."""
