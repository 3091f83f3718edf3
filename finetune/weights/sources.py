"""The values of `weights`: none, timm's default, a timm tag, a network of torchvision's, a repository of Hugging Face,
a run of this project, or a file; timm's recipe of a tag."""

import os
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, one_of
from finetune.files import MODEL
from finetune.preprocessing import Preprocessing
from finetune.weights import own_file, repositories
from finetune.weights.files import SUFFIXES, WeightsFile, check_file

Source = str | os.PathLike[str] | None

TORCHVISION = "torchvision/"
"""Begins the name of a network of torchvision's with its published weights: torchvision/fasterrcnn_resnet50_fpn."""
WITH_HEAD = (
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fasterrcnn_resnet50_fpn",
    "fcn_resnet101",
    "fcn_resnet50",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
"""Networks of torchvision's whose head is known here (weights/whole.py)."""


def resolve(name: str, weights: Source) -> WeightsFile | None:
    """The file behind `weights` for the named model, downloaded if needed; None for random weights.

    Raises:
        FinetuneError: unknown file or tag, or not available.
    """
    if weights is None or weights == "none":
        return None
    if not isinstance(weights, str | os.PathLike):
        raise FinetuneError(f"weights={weights!r} is neither default, a tag, a repository, a run, a file nor none.")
    from finetune.weights.hub import HUB_FILE, from_hub, from_url  # the hub's client takes time to import

    if isinstance(weights, str) and weights.startswith(TORCHVISION) and not Path(weights).exists():
        return WeightsFile(from_url(torchvision_url(weights.removeprefix(TORCHVISION))), weights)
    if repositories.is_repository(weights):
        return repositories.find(str(weights))
    if is_path(weights):
        path = Path(weights).expanduser()
        return WeightsFile(own_file.file_of_run(path) if path.is_dir() else check_file(path))
    tags = published(name)
    if not tags:
        raise FinetuneError(
            f"backbone.weights={weights}: {name} has no published weights. "
            "Choose backbone.weights=none (random weights) or backbone.weights=PATH (a file)."
        )
    default = default_tag(name)
    tag = default if weights == "default" else str(weights).removeprefix(f"{name}.")
    if tag not in tags:
        raise FinetuneError(
            f"backbone.weights={weights} is neither a file nor a tag of {name}. Choose default ({default}), "
            f"one of {', '.join(sorted(tags))}, none (random weights), PATH (a file or a run) or hf-hub:ORG/NAME."
        )
    recipe = tags[tag]
    path = from_hub(recipe.hf_hub_id, recipe.hf_hub_filename or HUB_FILE) if recipe.hf_hub_id else from_url(recipe.url)
    return WeightsFile(path, tag, preprocessing_from(recipe), recipe.license)


def may_fill_parts(weights: Source) -> bool:
    """Whether `weights` name a file, which may hold a neck and a head too: torchvision's. Of timm's weights, of a
    repository and of a run the backbone alone is used."""
    if weights is None or repositories.is_repository(weights):
        return False
    return is_path(weights) and not Path(weights).expanduser().is_dir()  # as torchvision/NAME is


def torchvision_url(name: str) -> str:
    """The address of torchvision's weights, trained on COCO, of one of `WITH_HEAD`."""
    if name not in WITH_HEAD:
        raise one_of("backbone.weights", f"{TORCHVISION}{name}", [f"{TORCHVISION}{known}" for known in WITH_HEAD])
    from torchvision.models import get_model_weights

    return str(get_model_weights(name).DEFAULT.url)


def is_path(weights: str | os.PathLike[str]) -> bool:
    """Whether it is a path: tags have neither separators nor a weight file's suffix."""
    if not isinstance(weights, str):
        return True
    is_here = Path(weights).is_file() or (Path(weights) / MODEL).is_file()  # a run folder holds a file of that name
    return "/" in weights or os.sep in weights or weights.endswith(SUFFIXES) or is_here


def published(name: str) -> dict[str, Any]:
    """timm's recipe of each tag under which weights of the model are published; {} for a model timm does not have."""
    import timm

    return {key.split(".", 1)[1]: timm.get_pretrained_cfg(key) for key in timm.list_pretrained(f"{name}.*")}


def default_tag(name: str) -> str:
    """The tag of `default`, for a model with published weights."""
    import timm

    recipe = timm.get_pretrained_cfg(name)
    assert recipe is not None, name  # a model with published weights is known to timm
    return str(recipe.tag)


def default_preprocessing(name: str) -> Preprocessing | None:
    """How timm prepares images for this model by default; None for a model that timm does not have."""
    import timm

    recipe = timm.get_pretrained_cfg(name)
    return preprocessing_from(recipe) if recipe else None


def preprocessing_from(recipe: Any) -> Preprocessing:
    """How images are prepared for a published model, as timm evaluates it."""
    return Preprocessing(
        image_size=recipe.input_size[1],
        mean=tuple(recipe.mean),
        std=tuple(recipe.std),
        interpolation=recipe.interpolation,
        fit="crop",
        crop_fraction=recipe.crop_pct,
    )
