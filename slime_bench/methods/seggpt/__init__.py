"""SegGPT: support images as prompts of a model that paints masks in context."""
