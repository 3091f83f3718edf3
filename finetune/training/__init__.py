"""Training: the LightningModule, which parts train in which epoch, checkpoints, ranks."""
