"""Synthetic twins of the real archives: their true raw layouts, filled with renderings of the mini world."""
