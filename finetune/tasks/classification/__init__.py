"""Classification: multiclass and multilabel."""

from finetune.tasks.classification.task import Classification

__all__ = ["Classification"]
