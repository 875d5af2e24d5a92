"""What the InfluenceNetwork sees of each sample, from one pass of a model."""
