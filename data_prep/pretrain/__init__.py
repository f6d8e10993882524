"""Trains the bundled small backbones."""
