"""Training on the choice: how much better a model gets, beside random rows and what costs nothing."""
