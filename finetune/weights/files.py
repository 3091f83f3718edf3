"""Weight files to tensors. Only tensors are read: a pickle that would run code is refused, without running it."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.strict_json import one_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".tar", ".ckpt", ".bin")

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which training programs store the tensors of a checkpoint; averaged weights come first, as in timm."""

MAX_HEADER = 32 * 2**20
"""Bytes; the header of a safetensors file takes about 100 per tensor, plus metadata."""


@dataclass(frozen=True)
class WeightsFile:
    """A weight file on disk, with its tag, licence and preprocessing, if known."""

    path: Path
    tag: str | None = None
    """timm's name of the recipe, such as a1_in1k, or the name of a repository; None for a file given by its path."""
    preprocessing: Preprocessing | None = None
    licence: str | None = None
    architecture: str | None = None
    """The network that the file is said to be of, by timm's name."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU; a training checkpoint is unwrapped.

    Raises:
        FinetuneError: no such file, not a weight file, broken, with objects that are not tensors, or with a tensor
            that holds NaN or infinity.
    """
    path = check_file(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _unwrap(_read_pickle(path), path)
    if not tensors:
        raise FinetuneError(f"weights={path} holds no tensors.")
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    if broken:
        raise FinetuneError(
            f"weights={path} holds NaN or infinity in {shorten(broken)}: the training it comes from went wrong, "
            "or the file is damaged. Take an earlier checkpoint."
        )
    return tensors


def _is_finite(value: Tensor) -> bool:
    value = value.float() if value.element_size() == 1 else value  # torch has no isfinite for eight bits
    return bool(value.isfinite().all())


def check_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise FinetuneError(f"weights={path} is a folder. Name the file in it ({', '.join(SUFFIXES)}).")
    if not path.is_file():
        raise FinetuneError(f"weights={path} does not exist. Name a file, a tag, default or none.")
    if path.suffix not in SUFFIXES:
        raise FinetuneError(f"weights={path} is not a kind of weight file known here ({', '.join(SUFFIXES)}).")
    return path


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(path: Path, argument: str) -> Iterator[Any]:
    """An open safetensors file; any problem is an error that names `argument` and the path."""
    try:
        with open(path, "rb") as file:  # a header of an implausible size is not parsed
            start = file.read(8)
            length, rest = int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size - 8
        if len(start) < 8 or not 2 <= length <= min(rest, MAX_HEADER):
            raise FinetuneError(
                f"{argument}={path} cannot be read as safetensors: it is damaged, cut short or another kind of file."
            )
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise FinetuneError(f"{argument}={path} cannot be read as safetensors: {one_line(error)}.") from error


def shorten(names: list[str], count: int = 4) -> str:
    """The first few names, and how many there are."""
    return ", ".join(names[:count]) + (f", ... ({len(names)} in all)" if len(names) > count else "")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with opened(path, "weights") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickles, which are read or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FinetuneError(
            f"weights={path} is not opened: it holds more than tensors and plain values, and such a file can run any "
            "program on this computer. If you trust it, open it where it was made and keep its tensors: "
            f"torch.save(model.state_dict(), 'tensors.pth'). (torch: {reason[:200]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FinetuneError(
            f"weights={path} cannot be read: it is damaged or no torch file ({reason[:99]})."
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict) and not _is_state(content):
        inner = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            keys = shorten([str(key) for key in content])
            raise FinetuneError(
                f"weights={path} has no tensors by name: its keys are {keys}. "
                f"They are looked for at the top and in {', '.join(WRAPPERS)}."
            )
        content = content[inner[0]]
    if not isinstance(content, dict):
        raise FinetuneError(f"weights={path} holds a {type(content).__name__}, not tensors by name (a state_dict).")
    return dict(content)


def _is_state(content: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
