"""Hypercolumn probe: ridge regression and dense retrieval on the hidden states of a frozen diffusion model."""
