"""Models for other programs: one graph from uint8 images to probabilities, in a file that needs no finetune."""
