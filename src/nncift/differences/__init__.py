"""Two finished runs compared: their subsets, and the influence that these were chosen by."""
