"""A segmentation network, trained on the whole annotated training split."""
