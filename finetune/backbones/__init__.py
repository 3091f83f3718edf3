"""Backbones: ResNets and DenseNets in plain torch, with timm's module names.

`build(name, ...)` makes one, `list_models()` names them all; `Backbone` says what each offers.
"""

from finetune.backbones.base import Backbone
from finetune.backbones.build import apply_memory, build, list_models

__all__ = ["Backbone", "apply_memory", "build", "list_models"]
