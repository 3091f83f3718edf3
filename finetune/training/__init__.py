"""Training: the LightningModule, what learns when, checkpoints, ranks."""
