"""What stands beside an exported file: FILE.json, which says all that a user of the graph must know."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import finetune
from finetune import views
from finetune.deploy.graph import Graph
from finetune.deploy.parity import Parity, decode_side
from finetune.evaluation.segmentation.collect import HALF
from finetune.model_file import Model

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")


def manifest(
    model: Model, graph: Graph, path: Path, format: str, precision: str, parity: dict[str, Parity], **more: Any
) -> dict[str, Any]:
    """The manifest of the file at `path`, in plain values."""
    answers: Any = model.answers
    size = graph.input.size
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": format,
        "precision": precision,
        "task": model.task,
        "classes": model.classes,
        "meaning": meaning(answers),
        "size": size,
        "input": {"image": "uint8 (N, H, W, 3), gray repeated" + ("" if size == "any" else ", H = W = image_size")},
        "outputs": graph.outputs,
        "calibrated": answers.calibration.calibrated if "calibrated" in graph.outputs else [],
        "thresholds": thresholds(answers),
        "suppression": suppression(graph),
        "preprocessing": model.preprocessing.to_dict(),
        "decode_side": decode_side(model),
        "in_graph": [*(["resize"] if size == "any" else []), "normalise", "network", "tta"],
        "not_in_graph": ["decoding", "novelty", *not_in_graph(model.task, answers)],
        "tta": list(model.tta),
        "views": views.number_of_views(model.tta),
        "answers": answers.to_dict(),
        "model": {"weights_hash": model.weights_hash, "backbone": model.spec.backbone, "network": model.spec.to_dict()},
        "versions": versions(),
        "parity": {name: asdict(about) for name, about in parity.items()},
        **more,
    }


def meaning(answers: Any) -> str:
    """Whether classes exclude each other, or may hold beside others."""
    if hasattr(answers, "kind"):
        return "exclusive" if answers.kind == "multiclass" else "findings"
    if hasattr(answers, "overlapping"):
        return "findings" if answers.overlapping else "exclusive"
    return "boxes"


def thresholds(answers: Any) -> dict[str, Any]:
    """{class: {threshold, point}}, from which probability or score a class holds; empty where classes exclude."""
    if hasattr(answers, "overlapping"):
        names = answers.regions if answers.overlapping else []
        return {name: {"threshold": answers.thresholds.get(name, HALF)} for name in names}
    return answers.thresholds


def suppression(graph: Graph) -> dict[str, float] | None:
    """What is left to do for boxes; None for other tasks."""
    retinanet = getattr(graph.network.head, "retinanet", None)
    if retinanet is None:
        return None
    iou, most = graph.network.head.suppression
    return {"iou": iou, "most": most, "score": retinanet.score_thresh}


def not_in_graph(task: str, answers: Any) -> list[str]:
    """What else `Model.predict` gives."""
    if task == "detect":
        return ["non-maximum suppression", "calibration of scores"]
    return ["conformal sets"] if getattr(answers, "conformal", None) is not None else []


def versions() -> dict[str, str]:
    """Of the packages that took part."""
    found = {"finetune": finetune.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
