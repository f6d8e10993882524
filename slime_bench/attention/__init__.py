"""Attention as plain tensors: capturing queries and keys of named layers, and maps made of them."""
