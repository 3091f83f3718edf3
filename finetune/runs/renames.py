"""Names that stand in the config.yaml of older runs, and what they are called today."""

from typing import Any

RENAMED = {
    "finetune.data.transforms.Augment": "finetune.data.loading.augment.Augment",
    "finetune.evaluation.assessment.Assessment": "finetune.evaluation.classification.assessment.Assessment",
}
"""Names that stand in the config.yaml of runs of version 0.1.0 -> what they are called now."""


def renamed(node: Any) -> Any:
    """The configuration of a run with the names of today."""
    if isinstance(node, dict):
        return {k: RENAMED.get(v, v) if k == "_target_" and isinstance(v, str) else renamed(v) for k, v in node.items()}
    return [renamed(value) for value in node] if isinstance(node, list) else node
