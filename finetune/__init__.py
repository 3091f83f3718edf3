"""Fine-tune ResNets and DenseNets on your own images, and know how far to trust the result.

Importing this package is cheap: torch, timm and lightning load when a name below is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "FinetuneError",
    "Predictions",
    "compare",
    "create_model",
    "data_module",
    "evaluate",
    "explain",
    "export",
    "fit",
    "fold_batch_norm",
    "list_models",
    "load",
    "predict",
    "preview",
    "push",
    "read_run",
    "register_backbone",
    "register_head",
    "register_neck",
    "register_task",
    "resume",
    "run_job",
    "summarise",
]

if TYPE_CHECKING:
    from finetune.backbones import list_models
    from finetune.backbones.folding import fold_batch_norm
    from finetune.deploy.exporting import export
    from finetune.errors import FinetuneError
    from finetune.evaluation.classification.predictions import Predictions
    from finetune.evaluation.classification.summary import summarise
    from finetune.explanations import explain
    from finetune.extend import register_backbone, register_head, register_neck, register_task
    from finetune.model_file import load
    from finetune.network import create_model
    from finetune.python.calls import data_module, evaluate, fit, predict, preview, resume, run_job
    from finetune.runs.read import read_run
    from finetune.steps.compare import compare
    from finetune.steps.push import push

_HOME = {
    "FinetuneError": "finetune.errors",
    "Predictions": "finetune.evaluation.classification.predictions",
    "compare": "finetune.steps.compare",
    "create_model": "finetune.network",
    "data_module": "finetune.python.calls",
    "evaluate": "finetune.python.calls",
    "explain": "finetune.explanations",
    "export": "finetune.deploy.exporting",
    "fit": "finetune.python.calls",
    "fold_batch_norm": "finetune.backbones.folding",
    "list_models": "finetune.backbones",
    "load": "finetune.model_file",
    "predict": "finetune.python.calls",
    "preview": "finetune.python.calls",
    "push": "finetune.steps.push",
    "read_run": "finetune.runs.read",
    "register_backbone": "finetune.extend",
    "register_head": "finetune.extend",
    "register_neck": "finetune.extend",
    "register_task": "finetune.extend",
    "resume": "finetune.python.calls",
    "run_job": "finetune.python.calls",
    "summarise": "finetune.evaluation.classification.summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # at hand from now on
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
