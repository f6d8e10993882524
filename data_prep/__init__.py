"""Data preparation: the procedural mini world, its backbones, and the builders of the real data sets."""
