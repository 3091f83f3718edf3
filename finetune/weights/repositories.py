"""Repositories of Hugging Face as weights: in timm's form, or a model of this project that was pushed there.

timm's form is a config.json that names the architecture, with `pretrained_cfg` (preprocessing, licence), beside
model.safetensors or pytorch_model.bin; of the latter tensors alone are read.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.files import MODEL
from finetune.preprocessing import Preprocessing
from finetune.strict_json import read
from finetune.weights import own_file
from finetune.weights.files import WeightsFile, opened

PREFIX, TIMM = "hf-hub:", "timm/"
NAME = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
"""timm's own way to write it: hf-hub:ORG/NAME, and @REVISION (a branch, a tag or a commit) where it is not main."""
CONFIG = "config.json"
TENSORS = (MODEL, "pytorch_model.bin")


@dataclass(frozen=True)
class PretrainedCfg:
    """What is read of timm's `pretrained_cfg`; a missing key takes timm's default."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """Channels, height, width."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    license: str | None = None

    def preprocessing(self) -> Preprocessing:
        """How timm prepares images when it evaluates.

        Raises:
            FinetuneError: images that are not square, or a value that is unknown here.
        """
        channels, height, width = self.input_size
        if height != width:
            raise FinetuneError(f"input_size={self.input_size}: images are squares here.")
        squash = self.crop_mode == "squash" and self.crop_pct == 1
        if self.crop_mode != "center" and not squash:
            raise FinetuneError(f"crop_mode={self.crop_mode} with crop_pct={self.crop_pct} is not known here.")
        return Preprocessing(
            image_size=height,
            in_channels=channels,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            fit="squash" if squash else "crop",
            crop_fraction=self.crop_pct,
        )


@dataclass(frozen=True)
class Config:
    """What is read of config.json."""

    architecture: str | None = None
    pretrained_cfg: PretrainedCfg | None = None


def is_repository(weights: str | os.PathLike[str]) -> bool:
    """Whether it is written as a repository; a folder `timm` of one's own comes first."""
    if not isinstance(weights, str):
        return False
    return weights.startswith(PREFIX) or (weights.startswith(TIMM) and not Path(weights).exists())


def find(weights: str) -> WeightsFile:
    """The weights of hf-hub:ORG/NAME or timm/NAME, from the cache or downloaded.

    Raises:
        FinetuneError: no such repository, not available, or neither in timm's form nor of this project.
    """
    match = NAME.fullmatch(weights)
    if match is None:
        raise FinetuneError(
            f"weights={weights} names no repository: write hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION."
        )
    repo, revision = match.groups()
    from finetune.weights.hub import MissingFile, check_name, from_hub  # the hub's client takes time to import

    check_name("weights", weights, repo)

    try:
        try:
            path = from_hub(repo, CONFIG, revision)
        except FinetuneError as error:  # a model pushed by this project may have no config.json: its header has it all
            return WeightsFile(_own_model(repo, revision, error, is_missing=isinstance(error, MissingFile)), weights)
        architecture, cfg = _read_config(path)
        tensors = _tensors(repo, revision or _commit(path))
        # the header of a model of this project is the more exact: config.json has no word for some preprocessing
        return WeightsFile(
            tensors, weights, None if _is_own(tensors) else cfg.preprocessing(), cfg.license, architecture
        )
    except FinetuneError as error:
        raise FinetuneError(f"weights={weights}: {error}{_hint(repo)}") from None


def _is_own(path: Path) -> bool:
    """Whether it is a model file of this project."""
    if path.suffix != ".safetensors":
        return False
    with opened(path, "weights") as file:
        return own_file.TEXT in (file.metadata() or {})


def _tensors(repo: str, revision: str | None) -> Path:
    """The file of tensors, the safetensors first."""
    from finetune.weights.hub import MissingFile, cached, from_hub

    for name in TENSORS:
        if path := cached(repo, name, revision):
            return path
    for name in TENSORS:
        try:
            return from_hub(repo, name, revision)
        except MissingFile:
            continue
    raise FinetuneError(f"{repo} has no weights in timm's form: neither {' nor '.join(TENSORS)}.")


def _own_model(repo: str, revision: str | None, why: FinetuneError, *, is_missing: bool) -> Path:
    """The model.safetensors of a run that was pushed without a config.json; `why` there is none, if only in the cache.

    Raises:
        FinetuneError: another program's file, or none.
    """
    from finetune.weights.hub import MissingFile, cached, from_hub

    path = cached(repo, MODEL, revision)
    if path is None and not is_missing:
        raise why
    try:
        path = path or from_hub(repo, MODEL, revision)
    except MissingFile:
        path = None
    if path is None or not _is_own(path):
        raise FinetuneError(f"{repo} has no {CONFIG} in timm's form, and no {MODEL} of this project.")
    return path


def _commit(cached: Path) -> str | None:
    """The commit that a file of the hub's cache is of, so that those beside it are of the same."""
    name = cached.parent.name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None


def _read_config(path: Path) -> tuple[str, PretrainedCfg]:
    """Architecture and `pretrained_cfg` of a config.json; timm before 0.9 wrote its keys beside the architecture.

    Raises:
        FinetuneError: another program's config.json, or a damaged one.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = read(Config, text)
        if config.architecture is not None:
            return config.architecture, config.pretrained_cfg or read(PretrainedCfg, text)
    except FinetuneError as error:
        raise FinetuneError(f"its {CONFIG} cannot be used: {error}") from None
    raise FinetuneError(
        f"its {CONFIG} is not in timm's form: it names no architecture. Weights of other libraries, such as "
        "transformers, have other names; give a file of tensors in the form of timm or torchvision."
    )


def _hint(repo: str) -> str:
    """timm/resnet18 is the name of a model, not of a repository."""
    is_model = repo.startswith(TIMM) and "." not in repo
    return f" timm's repositories are named MODEL.TAG, such as {TIMM}resnet18.a1_in1k." if is_model else ""
