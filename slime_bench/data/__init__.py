"""Data sets: folders of images and label maps, support sets, augmentation, batches."""
