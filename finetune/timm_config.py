"""The config.json beside a model.safetensors by which timm and transformers build the network and prepare images.

Its form is that of the repositories of timm on the Hugging Face hub: timm/models/_hub.py and, in transformers,
models/timm_wrapper. It cannot say everything: calibration, thresholds and views stay in the model file, and of fit=pad
the border, which is black here and of the mean colour in timm.
"""

from typing import Any

from finetune.backbones.build import MODELS
from finetune.backbones.preact import PreActResNet
from finetune.backbones.resnet import ResNet
from finetune.evaluation.answers import Answers
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights.fitting import first_conv
from finetune.weights.stored_names import keys_for

CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}
"""Preprocessing.fit -> timm's crop_mode."""
POOLS = {"avg": "avg", "max": "max", "avgmax": "catavgmax"}
"""ClassifyHead.pool -> timm's global_pool."""
PROBLEMS = {"multiclass": "single_label_classification", "multilabel": "multi_label_classification"}
"""ClassAnswers.kind -> problem_type of transformers, by which its pipeline takes a softmax or sigmoids."""


def why_not(spec: NetworkSpec) -> str | None:
    """Why timm cannot build a network, in words; None if it can."""
    if spec.neck is not None:
        return f"timm has no network with neck={spec.neck}"
    if keys_for(spec.backbone, spec.head, spec.neck) == "timm":
        stride = spec.backbone_options.get("output_stride") or 32
        if stride == 32 or issubclass(MODELS[spec.backbone].func, ResNet | PreActResNet):  # type: ignore[arg-type]
            return None
        return f"timm has no {spec.backbone} with output_stride={stride}"
    if spec.head == "classify":
        return f"timm has no network {spec.backbone}"
    return f"timm has no network with head={spec.head}"


def timm_config(network: Network, spec: NetworkSpec, preprocessing: Preprocessing, answers: Answers) -> dict[str, Any]:
    """The content of config.json, of a network that timm can build."""
    backbone, side = network.backbone, preprocessing.image_size
    arguments: dict[str, Any] = {"global_pool": POOLS[str(network.head.pool)], "in_chans": spec.in_channels}
    if stride := spec.backbone_options.get("output_stride"):
        arguments["output_stride"] = stride
    kind = PROBLEMS.get(getattr(answers, "kind", ""))
    return {
        "architecture": spec.backbone,
        "num_classes": spec.num_classes,
        "num_features": backbone.num_features,
        "global_pool": arguments["global_pool"],
        "label_names": list(answers.classes),
        **({"problem_type": kind} if kind else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [spec.in_channels, side, side],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_fraction,
            "crop_mode": CROP_MODES[preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": spec.num_classes,
            "pool_size": None,
            "first_conv": first_conv(backbone).removesuffix(".weight"),
            "classifier": backbone.classifier_name,
            "custom_load": False,
        },
    }
