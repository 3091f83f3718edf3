"""Loading: sampling, augmentation, batches."""
