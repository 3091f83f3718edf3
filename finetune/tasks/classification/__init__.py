"""Classification: one of several classes, or several findings at once."""

from finetune.tasks.classification.task import Classification

__all__ = ["Classification"]
