"""What a model.safetensors says of itself beside its tensors: typed values within bounds, held against each other.

Nothing is built from it that the tensors in the file do not already take: as many outputs as named classes, as many
channels as the preprocessing gives, and every shape equal to that of the tensor in the file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NotRequired

import torch
from typing_extensions import TypedDict

from finetune import strict_json
from finetune.backbones.build import MODELS
from finetune.errors import FinetuneError
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.evaluation.classification.selective import ALL
from finetune.heads import HEADS, NECKS
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights.own_file import FORMAT

STRICT: Any = {"extra": "forbid", "allow_inf_nan": False}
GROWING: Any = {"extra": "allow", "allow_inf_nan": False}

DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors writes them."""


class OperatingPoint(TypedDict):
    """Thresholds of `prob_<class>`; what else is said of them is kept as it is."""

    __pydantic_config__ = GROWING  # type: ignore[misc]
    thresholds: dict[str, float]
    goal: NotRequired[str]
    value: NotRequired[float | None]
    split: NotRequired[str]


class Selective(TypedDict):
    """How sure an answer must be, per share of images to answer."""

    __pydantic_config__ = GROWING  # type: ignore[misc]
    threshold: float | None
    cuts: dict[str, float]
    point: NotRequired[str | None]


@dataclass(frozen=True)
class Header:
    """All that a model file holds beside its tensors."""

    __pydantic_config__: ClassVar[Any] = STRICT

    format: int
    network: NetworkSpec
    classes: list[str]
    kind: Literal["multilabel", "multiclass"]
    preprocessing: Preprocessing
    weights_hash: str
    """sha256 over names and bytes of all tensors."""
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    selective: dict[str, Selective] = field(default_factory=dict)
    conformal: Conformal | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.format <= FORMAT:
            raise FinetuneError(f"format={self.format} must lie between 1 and {FORMAT}.")
        if not self.classes or not all(self.classes) or len(set(self.classes)) < len(self.classes):
            raise FinetuneError("classes must be names, each once.")
        if self.network.num_classes != len(self.classes):
            raise FinetuneError(f"network.num_classes={self.network.num_classes}, but {len(self.classes)} are named.")
        if self.network.in_channels != self.preprocessing.in_channels:
            raise FinetuneError(
                f"network.in_channels={self.network.in_channels}, "
                f"but preprocessing.in_channels={self.preprocessing.in_channels}."
            )
        for name, fitted in (("calibration", self.calibration), ("conformal", self.conformal)):
            if fitted is not None:
                fitted.check()
                if list(fitted.classes) != list(self.classes) or fitted.kind != self.kind:
                    raise FinetuneError(f"{name} is of other classes, or of another kind, than the model.")
        for point, about in self.operating_points.items():
            _check_names(f"operating_points.{point}.thresholds", about["thresholds"], self.classes)
            for name, value in about["thresholds"].items():
                if not 0 <= value <= 1:
                    raise FinetuneError(f"operating_points.{point}.thresholds.{name}={value} must lie between 0 and 1.")
        _check_names("selective", self.selective, [ALL] if self.kind == "multiclass" else self.classes)
        for name, sure in self.selective.items():
            if self.kind == "multilabel" and not 0 <= (-1 if sure["threshold"] is None else sure["threshold"]) <= 1:
                raise FinetuneError(f"selective.{name}.threshold={sure['threshold']} must lie between 0 and 1.")
            if not all(_is_share(wished) for wished in sure["cuts"]):
                raise FinetuneError(f"selective.{name}.cuts={sure['cuts']} must be named by shares between 0 and 1.")

    def to_text(self) -> str:
        return json.dumps({**asdict(self), "network": self.network.to_dict()})

    def check_tensors(self, held: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Hold the network that the header describes against {name: (safetensors' dtype, shape)} of the file.

        The network is built without memory for its tensors: nothing is allocated before the file has shown that it
        holds them.

        Raises:
            FinetuneError: no such network, or one of other tensors.
        """
        try:
            with torch.device("meta"):
                state = self.network.build().state_dict()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # all it is built from is in the header
            parts_known = self.network.head in HEADS and self.network.neck in (None, *NECKS)
            known = parts_known and self.network.backbone in MODELS
            own = "" if known else " A part of your own is registered first: trust=[MODULE], or its import in Python."
            raise FinetuneError(f"its network cannot be built: {strict_json.one_line(error)}{own}") from None
        wanted = {name: (DTYPES[value.dtype], tuple(value.shape)) for name, value in state.items()}
        if wanted.keys() != held.keys():
            missing, unknown = wanted.keys() - held.keys(), held.keys() - wanted.keys()
            raise FinetuneError(strict_json.one_line(f"missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}."))
        for name, tensor in wanted.items():
            if held[name] != tensor:
                raise FinetuneError(f"{name} is {_shown(held[name])}, not {_shown(tensor)}.")


def _check_names(where: str, names: Iterable[str], classes: list[str]) -> None:
    if unknown := sorted(set(names) - set(classes)):
        raise FinetuneError(f"{where} has {unknown[:3]}, which are not among the classes.")


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _shown(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {tensor[1]}"
