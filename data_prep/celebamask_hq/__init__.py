"""Prepares CelebAMask-HQ's faces."""
