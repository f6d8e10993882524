"""Peekaboo: an alpha map for each part, optimised until the diffusion model sees the part's name in it."""
