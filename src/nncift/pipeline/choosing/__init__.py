"""The choice: influence of all pairs, quotas and near-duplicates, the subset, its verification and arrangement."""
