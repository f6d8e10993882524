"""Frozen foundation models: load (offline first), encode, and hand out queries and keys of named layers."""
