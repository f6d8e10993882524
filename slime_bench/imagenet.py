"""Colours as networks trained on ImageNet see them: (x - mean) / standard deviation of pixels x in [0,1], RGB."""

from __future__ import annotations

from typing import Final

IMAGENET: Final[tuple[tuple[float, ...], tuple[float, ...]]] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel; what the second paper's code normalises with."""
