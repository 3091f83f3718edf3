"""What a configuration may build: names of this project, some of libraries, and those of trusted modules."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import get_object

from finetune.errors import FinetuneError

PROJECT_NAMES = {
    "finetune.data.sources.chestxray.ChestXray",
    "finetune.data.sources.chexpert.CheXpert",
    "finetune.data.sources.coco.Coco",
    "finetune.data.sources.csv_table.CsvTable",
    "finetune.data.sources.folder.Folder",
    "finetune.data.sources.huggingface.HuggingFace",
    "finetune.data.sources.isic.Isic",
    "finetune.data.sources.joint.Joint",
    "finetune.data.sources.kermany.Kermany",
    "finetune.data.sources.medmnist.MedMnist",
    "finetune.data.sources.mimic.MimicCxr",
    "finetune.data.sources.padchest.PadChest",
    "finetune.data.sources.pcam.PCam",
    "finetune.data.sources.rsna.Rsna",
    "finetune.data.sources.torchvision_sets.TorchvisionSet",
    "finetune.data.sources.vindr.VinDr",
    "finetune.data.sources.voc.Voc",
    "finetune.data.sources.yolo.Yolo",
    "finetune.data.loading.augment.Augment",
    "finetune.data.loading.mixing.CutMix",
    "finetune.data.loading.mixing.Mixup",
    "finetune.data.loading.mixing.MixupOrCutMix",
    "finetune.data.loading.policies.RandAugment",
    "finetune.data.loading.policies.TrivialAugment",
    "finetune.evaluation.classification.assessment.Assessment",
    "finetune.evaluation.detection.assessment.DetectionAssessment",
    "finetune.evaluation.segmentation.assessment.SegmentationAssessment",
    "finetune.losses.AUCMargin",
    "finetune.losses.Asymmetric",
    "finetune.losses.BinaryCrossEntropy",
    "finetune.losses.CrossEntropy",
    "finetune.losses.PixelCrossEntropy",
    "finetune.losses.PixelFocal",
    "finetune.losses.SoftDice",
    "finetune.losses.WeightedSum",
    "finetune.losses.auto",
    "finetune.plan.Phase",
    "finetune.plan.Plan",
    "finetune.tasks.classification.Classification",
    "finetune.tasks.detection.Detection",
    "finetune.tasks.segmentation.Segmentation",
    "finetune.training.averaging.Ema",
    "finetune.training.averaging.Swa",
    "finetune.training.schedules.Cosine",
    "finetune.training.schedules.OneCycle",
    "finetune.training.schedules.Step",
}
"""Names of this project that a configuration may build."""

LIBRARIES = {
    "torch.optim.": "torch.optim.Optimizer",
    "lightning.pytorch.callbacks.": "lightning.pytorch.callbacks.Callback",
    "lightning.pytorch.loggers.": "lightning.pytorch.loggers.Logger",
    "albumentations.": "albumentations.BasicTransform",
}
"""Module prefix -> the class that whatever is built from it must descend from."""

UNSAFE = {"albumentations.Lambda", "lightning.pytorch.callbacks.LambdaCallback"}
"""Classes that take code as an argument."""


def target(name: str, trust: list[str], where: str) -> Callable[..., Any]:
    """The class or function behind a `_target_`, if a configuration may build it.

    Raises:
        FinetuneError: a name that is on no list, or that does not exist.
    """
    trusted = any(name == module or name.startswith(f"{module}.") for module in trust)
    prefix = next((p for p in LIBRARIES if name.startswith(p)), None)
    if name in UNSAFE or not (name in PROJECT_NAMES or prefix or trusted):
        raise FinetuneError(
            f"{where}={name} is not something a configuration may build. If it is your own code, "
            f"type trust=[{name.rpartition('.')[0]}] to allow it."
        )
    try:
        value = get_object(name)
    except (ImportError, ValueError, AttributeError):
        raise FinetuneError(f"{where}={name} does not exist in what is installed.") from None
    if not (trusted or name in PROJECT_NAMES) and prefix:
        base = get_object(LIBRARIES[prefix])
        if not (inspect.isclass(value) and issubclass(value, base)):
            raise FinetuneError(f"{where}={name} is not a {base.__name__}; only these may be built from there.")
    return value


def import_trusted(config: Mapping[str, Any]) -> list[str]:
    """Import the user's modules that `trust` names, which may register backbones and heads; their names.

    Raises:
        FinetuneError: not a list of names, or a module that cannot be imported; says why.
    """
    trust = config.get("trust") or []
    if not isinstance(trust, list) or not all(isinstance(module, str) for module in trust):
        raise FinetuneError(f"trust={trust} must be a list of module names: trust=[my_package].")
    for module in trust:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module exists; one that it imports does not
            raise FinetuneError(
                f"trust=[{module}]: no such module. Start the command in its folder, or name that in PYTHONPATH."
            ) from None
    return list(trust)


CONTRACTS: dict[str, dict[str, str]] = {
    "data.source": {"table": "table() -> SampleTable"},
    "loss": {
        "kind": 'kind: "multilabel" or "multiclass", "mask" of masks',
        "weights": "weights(classes, targets) -> Tensor (K,) or None",
        "__call__": "__call__(logits, target, weights) -> (sum, count)",
    },
    "task": {
        "name": "name: str",
        "gives": 'gives: "classes", "regions" or "detections"',
        "check": "check(table)",
        "objective": "objective(table, rows) -> Objective",
        "answers": "answers(table, fitted) -> Answers",
    },
    "averaging": {
        "note": "note(network) -> str",
        "check": "check(max_epochs)",
    },
    "schedule": {"factor": "factor(step, total) -> float"},
    "transforms": {"__call__": "__call__(image, seed) -> image, uint8 of the same shape"},
    "mixing": {"p": "p: float, the part of the images that is mixed", "draw": "draw(random) -> Blend"},
}
"""Key of the configuration -> attributes of its object that are used, each with its description for an error."""


def check_contract(where: str, built: Any) -> None:
    """Refuse an object of the user that lacks a used attribute, before it is needed."""
    for name, line in CONTRACTS.get(where, {}).items():
        is_present = callable(built) if name == "__call__" else hasattr(built, name)
        if not is_present:
            raise FinetuneError(f"{where}: {type(built).__module__}.{type(built).__qualname__} has no {line}.")


def check_type(where: str, built: Any, base: type) -> Any:
    """`built`, which must be a `base`."""
    if not isinstance(built, base):
        class_name = f"{type(built).__module__}.{type(built).__qualname__}"
        raise FinetuneError(f"{where}: {class_name} is not a {base.__module__}.{base.__qualname__}.")
    return built
