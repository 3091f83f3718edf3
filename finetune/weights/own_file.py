"""This project's own model.safetensors: the tensors, and a text in the metadata that describes them.

Formats 2 and 3 cover all of it by hashes: the text states the sha256 of the tensors, and the file the sha256 of the
text. Format 1 lacks the second. Format 3 stores what timm can build under timm's names (`stored_names`), and a record
of the data and test vectors. `finetune.model_header` reads the whole text, this module what loading weights needs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune import strict_json
from finetune.errors import FinetuneError
from finetune.files import MODEL, SCORES, is_finished, resume_word
from finetune.preprocessing import Preprocessing
from finetune.weights import stored_names
from finetune.weights.stored_names import Keys

T = TypeVar("T")

FORMAT = 3
"""Version of the layout; a file of a later version is refused."""
TEXT, TEXT_HASH = "finetune", "finetune_sha256"


@dataclass(frozen=True)
class Version:
    """The part of the text that all formats share."""

    format: int = 1


@dataclass(frozen=True)
class StoredNetwork:
    """The part of the text on the network, as far as weights depend on it."""

    backbone: str = ""
    head: str = ""
    neck: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredRecord:
    """The part of the text on the tensors' names."""

    keys: Keys = "parts"


@dataclass(frozen=True)
class WeightsHeader:
    """The part of the text on the weights."""

    weights_hash: str | None = None
    preprocessing: Preprocessing | None = None
    network: StoredNetwork = field(default_factory=StoredNetwork)
    record: StoredRecord = field(default_factory=StoredRecord)

    def __post_init__(self) -> None:
        stored_names.check(self.record.keys, self.network.backbone, self.network.head, self.network.neck)

    def hash_of(self, tensors: Mapping[str, Tensor]) -> str:
        """The hash of tensors under their names in the file."""
        return tensors_hash(stored_names.to_network(tensors, self.record.keys, self.network.backbone))

    def other_classifier(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of a classifier that reads other features than a backbone of that name gives it."""
        if self.record.keys == "parts" or self.network.head_options.get("pool", "avg") == "avg":
            return []  # a backbone never takes head.*
        renamed = stored_names.to_network(tensors, self.record.keys, self.network.backbone)
        return [name for name, other in zip(tensors, renamed, strict=True) if other.startswith(stored_names.CLASSIFIER)]


def file_of_run(folder: Path) -> Path:
    """The model file of a finished run, at the place where `folder` points now: outputs/latest moves on.

    Raises:
        FinetuneError: no run folder, a run without a model, or an unfinished run.
    """
    path = folder.resolve() / MODEL
    if is_finished(folder):
        if path.is_file():
            return path
        raise FinetuneError(f"weights={folder} is a run without {MODEL}. Name the folder of a fit or soup, or a file.")
    if not any((folder / name).exists() for name in ("config.yaml", "checkpoints")):
        files = f"Name the file: {folder / MODEL}." if path.is_file() else "Name a run folder, or a file of weights."
        raise FinetuneError(f"weights={folder} is a folder, and no run: it has no {SCORES}. {files}")
    best = folder / "checkpoints" / "best.ckpt"
    also = f"take its best epoch so far ({best}), " if best.is_file() else ""
    raise FinetuneError(
        f"weights={folder} is not a finished run. Go on with it by `python -m finetune {resume_word(folder)}`, "
        f"{also}or name another run."
    )


def metadata(text: str) -> dict[str, str]:
    """The metadata of the file; older versions of transformers ask for the format, "pt" for PyTorch."""
    return {"format": "pt", TEXT: text, TEXT_HASH: hashlib.sha256(text.encode()).hexdigest()}


def header_text(metadata: Mapping[str, str]) -> str | None:
    """The text as written; None for a file of another program.

    Raises:
        FinetuneError: the text was changed, is no JSON, or is of a later format.
    """
    text, stated = metadata.get(TEXT), metadata.get(TEXT_HASH)
    if text is None:
        return None
    if stated is not None and hashlib.sha256(text.encode()).hexdigest() != stated:
        raise FinetuneError("is damaged: its header does not match the hash of the header.")
    number = read(Version, text).format
    if number > FORMAT:
        raise FinetuneError(f"has format {number}, this program reads up to {FORMAT}. Install a newer finetune.")
    if number > 1 and stated is None:
        raise FinetuneError("is damaged: the hash of its header is missing.")
    return text


def read(kind: type[T], text: str) -> T:
    """The part of the text that the dataclass `kind` describes.

    Raises:
        FinetuneError: no JSON, or a value of another type or out of its bounds.
    """
    try:
        return strict_json.read(kind, text)
    except FinetuneError as error:
        raise FinetuneError(f"has a header that is damaged or not this project's: {error}") from None


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names (those of the network) and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
