"""The keys that a job has by itself, and the data's of a job that asks a model again, held against their types."""

from collections.abc import Mapping
from typing import Any

from finetune.config import build

KEYS: dict[str, dict[str, Any]] = {
    "compare": {"runs": str | list[Any], "split": str},
    "evaluate": {"model": str, "split": str | None, "predictions": str | None, "labels": str | None},
    "explain": {"model": str, "split": str | None, "method": str},
    "predict": {"model": str, "output": str | None, "batch_size": int},
    "preview": {"steps": int},
}
"""Job -> key -> type; a value of one type may still be none that the job takes."""


def check(config: Mapping[str, Any]) -> None:
    """Raises:
    FinetuneError: naming the key, its value and what it should be.
    """
    for key, hint in KEYS.get(config["job"], {}).items():
        build.check_value(key, config[key], hint)
    if config["job"] in ("evaluate", "explain"):
        build.check_data(config["data"])
