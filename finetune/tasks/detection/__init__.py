"""Detection: where things are, as boxes with a class and a score."""

from finetune.tasks.detection.task import Detection

__all__ = ["Detection"]
