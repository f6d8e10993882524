"""slime-bench: few-shot segmentation from the attention of frozen foundation models."""
