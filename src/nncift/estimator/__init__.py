"""The InfluenceNetwork: influence of unseen pairs from features."""
