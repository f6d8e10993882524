"""Segmentation methods: Lightning modules that turn images into score maps [B,K,H,W]."""
