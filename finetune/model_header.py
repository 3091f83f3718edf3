"""The header of a model.safetensors: typed values within bounds, compared with each other and with the tensors.

Nothing larger than the tensors in the file is built from it: as many outputs as named classes, as many channels as
the preprocessing gives, and every shape equal to that of the tensor in the file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch

from finetune import strict_json
from finetune.backbones.build import MODELS
from finetune.backbones.unfilled import Unfilled
from finetune.errors import FinetuneError
from finetune.evaluation.answers import CLASSIFY, Answers, answers_named
from finetune.heads import HEADS, NECKS
from finetune.model_record import Record
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import own_file, stored_names
from finetune.weights.own_file import FORMAT

STRICT: Any = {"extra": "forbid", "allow_inf_nan": False}

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


@dataclass(frozen=True)
class Header:
    """The values in every model file beside its tensors; the other keys are the fields of the task's answers."""

    __pydantic_config__: ClassVar[Any] = STRICT

    format: int
    network: NetworkSpec
    preprocessing: Preprocessing
    weights_hash: str
    """sha256 over names (those of the network) and bytes of all tensors."""
    provenance: dict[str, Any] = field(default_factory=dict)
    task: str = CLASSIFY
    """Name of the task."""
    tta: tuple[str, ...] = ()
    """Views whose outputs are averaged; not written where there are none."""
    record: Record = field(default_factory=Record)
    """The names of the tensors, labels, data and test vectors; empty before format 3."""

    def __post_init__(self) -> None:
        if not 1 <= self.format <= FORMAT:
            raise FinetuneError(f"format={self.format} must lie between 1 and {FORMAT}.")
        if self.network.in_channels != self.preprocessing.in_channels:
            raise FinetuneError(
                f"network.in_channels={self.network.in_channels}, "
                f"but preprocessing.in_channels={self.preprocessing.in_channels}."
            )
        stored_names.check(self.record.keys, self.network.backbone, self.network.head, self.network.neck)

    def check_answers(self, answers: Answers) -> None:
        """Compare the answers with the network.

        Raises:
            FinetuneError: classes that are no names, or whose number is not that of the network's outputs.
        """
        classes = answers.classes
        if not classes or not all(classes) or len(set(classes)) < len(classes):
            raise FinetuneError("classes must be names, each once.")
        if self.network.num_classes != len(classes):
            raise FinetuneError(f"network.num_classes={self.network.num_classes}, but {len(classes)} are named.")
        answers.check()

    def to_text(self, answers: Answers) -> str:
        """All keys, as JSON; the task is named where it is not classify."""
        values = {**asdict(self), "network": self.network.to_dict()}
        if self.task == CLASSIFY:
            del values["task"]
        if not self.tta:
            del values["tta"]
        return json.dumps({**values, **answers.to_dict()})

    def check_tensors(self, stored: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Compare the network of the header with {name: (safetensors' dtype, shape)} of the file.

        The network is built without memory for its tensors: nothing is allocated before the file is known to hold
        them.

        Raises:
            FinetuneError: no such network, or a network with other tensors.
        """
        try:
            with torch.device("meta"), Unfilled():
                state = self.network.build().state_dict()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # the header alone determines it
            parts_known = self.network.head in HEADS and self.network.neck in (None, *NECKS)
            known = parts_known and self.network.backbone in MODELS
            hint = "" if known else " Register your own parts first: trust=[MODULE], or its import in Python."
            raise FinetuneError(f"its network cannot be built: {strict_json.one_line(error)}{hint}") from None
        named = stored_names.to_file(state, self.record.keys, self.network.backbone)
        expected = {name: (DTYPES[value.dtype], tuple(value.shape)) for name, value in named.items()}
        if expected.keys() != stored.keys():
            missing, unknown = expected.keys() - stored.keys(), stored.keys() - expected.keys()
            raise FinetuneError(strict_json.one_line(f"missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}."))
        for name, tensor in expected.items():
            if stored[name] != tensor:
                raise FinetuneError(f"{name} is {_format(stored[name])}, not {_format(tensor)}.")


def read(text: str) -> tuple[Header, Answers]:
    """The header and the answers that the text of a model file describes, each typed and within its bounds.

    Raises:
        FinetuneError: what is wrong.
    """
    values = own_file.read(dict[str, Any], text)
    common = {key: value for key, value in values.items() if key in Header.__dataclass_fields__}
    rest = {key: value for key, value in values.items() if key not in common}
    header = own_file.read(Header, json.dumps(common))
    answers = own_file.read(answers_named(header.task, "its task"), json.dumps(rest))
    try:
        header.check_answers(answers)
    except FinetuneError as error:
        raise FinetuneError(f"has a header that is damaged or not this project's: {error}") from None
    return header, answers


def _format(tensor: tuple[str, tuple[int, ...]]) -> str:
    return f"{tensor[0]} {tensor[1]}"
