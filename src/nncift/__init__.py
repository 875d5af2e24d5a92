"""nncift: find the subset of instruction-tuning data worth fine-tuning on."""
