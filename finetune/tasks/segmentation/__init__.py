"""Segmentation: which region each pixel is in, or which of several that overlap."""

from finetune.tasks.segmentation.task import Segmentation

__all__ = ["Segmentation"]
