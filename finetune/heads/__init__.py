"""Heads: what turns a backbone's maps into an answer."""

from finetune.heads.classify import ClassifyHead

__all__ = ["HEADS", "ClassifyHead"]

HEADS = {"classify": ClassifyHead}
"""Name in a model file -> head."""
