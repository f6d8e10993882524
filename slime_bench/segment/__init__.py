"""`slime-bench segment` and `slime-bench embeddings`: a user's own images, and embeddings as files."""
