"""LoRA fine-tuning, its checkpoints, and per-sample gradients."""
