"""DiffSeg: clusters of Stable Diffusion's self-attention, and three ways to name them."""
