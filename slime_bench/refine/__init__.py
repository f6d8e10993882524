"""Refinement of score maps by the image's own edges. Knows neither backbones nor methods."""
