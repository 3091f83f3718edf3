"""Names in the config.yaml of older runs, and their current names."""

from typing import Any

RENAMED = {
    "finetune.data.transforms.Augment": "finetune.data.loading.augment.Augment",
    "finetune.evaluation.assessment.Assessment": "finetune.evaluation.classification.assessment.Assessment",
}
"""Name in the config.yaml of a run of version 0.1.0 -> current name."""


def renamed(node: Any) -> Any:
    """The configuration of a run with current names."""
    if isinstance(node, dict):
        return {k: RENAMED.get(v, v) if k == "_target_" and isinstance(v, str) else renamed(v) for k, v in node.items()}
    return [renamed(value) for value in node] if isinstance(node, list) else node
