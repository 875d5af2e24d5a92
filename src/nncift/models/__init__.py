"""Language models and sentence encoders: finding, loading, prompts, batches that fit into memory."""
