"""Heads: what turns a backbone's maps into an answer."""

from collections.abc import Callable

from torch import nn

from finetune.heads.classify import ClassifyHead

__all__ = ["HEADS", "ClassifyHead"]

HEADS: dict[str, Callable[..., nn.Module]] = {"classify": ClassifyHead}
"""Name in a model file -> head."""
