"""Sets that torchvision knows, as sample tables: CIFAR, pets, flowers, food, textures, satellite images.

Sets of files are read where torchvision unpacks them. Sets of arrays are written once as NAME.npz, uncompressed, so
that all processes map one file instead of each holding a copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.data.sources.assemble import assemble, need_root
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of


class SetInfo(NamedTuple):
    """Where torchvision keeps a set, and its splits."""

    kind: str
    """Name of torchvision's class."""
    argument: str | None
    """Its argument that chooses the part; None for a set in one piece."""
    parts: dict[Any, str | None]
    """The argument's values -> our splits."""
    files: str | None
    """Attribute that lists the images' files; None for arrays."""


TRAIN_TEST: dict[Any, str | None] = {True: "train", False: "test"}
SETS = {
    "cifar10": SetInfo("CIFAR10", "train", TRAIN_TEST, None),
    "cifar100": SetInfo("CIFAR100", "train", TRAIN_TEST, None),
    "fashion_mnist": SetInfo("FashionMNIST", "train", TRAIN_TEST, None),
    "pets": SetInfo("OxfordIIITPet", "split", {"trainval": "train", "test": "test"}, "_images"),
    "flowers102": SetInfo("Flowers102", "split", {"train": "train", "val": "val", "test": "test"}, "_image_files"),
    "food101": SetInfo("Food101", "split", {"train": "train", "test": "test"}, "_image_files"),
    "dtd": SetInfo("DTD", "split", {"train": "train", "val": "val", "test": "test"}, "_image_files"),
    "eurosat": SetInfo("EuroSAT", None, {None: None}, "samples"),
}


@dataclass
class TorchvisionSet:
    """Source of one of torchvision's sets; its published split, without patients."""

    root: str | Path | None = None
    """Folder that torchvision keeps the set in."""
    name: str = "torchvision"
    """Which set, e.g. cifar10."""
    download: bool = False
    """Fetch the set where it is absent."""

    def table(self) -> SampleTable:
        """One row per image."""
        if self.name == "torchvision":
            raise FinetuneError(f"data=torchvision needs data.name=NAME: choose from {', '.join(SETS)}.")
        if self.name not in SETS:
            raise one_of("data.name", self.name, SETS)
        if self.root and self.download:
            Path(self.root).mkdir(parents=True, exist_ok=True)
        root = need_root(self.root, "torchvision", f"{self.name} as torchvision unpacks it (data.download=true does)")
        paths, labels, classes, splits = (self._files if SETS[self.name].files else self._arrays)(root)
        return assemble(
            root,
            self.name,
            paths,
            classes,
            np.array(labels),
            splits=splits,
            notes=["No patients or groups are known: every image counts as its own."],
        )

    def _files(self, root: Path) -> tuple[list[str], list[int], list[str], list[str | None]]:
        info = SETS[self.name]
        paths: list[str] = []
        labels: list[int] = []
        splits: list[str | None] = []
        classes: list[str] = []
        for part, split in info.parts.items():
            data = self._open(root, part)
            listed = getattr(data, str(info.files))
            files = [item[0] for item in listed] if info.files == "samples" else listed
            paths += [os.path.relpath(file, root).replace(os.sep, "/") for file in files]
            numbers = [item[1] for item in listed] if info.files == "samples" else data._labels
            labels += [int(number) for number in numbers]
            splits += [split] * len(files)
            classes = [str(name) for name in getattr(data, "classes", ())] or classes
        return paths, labels, classes or [str(i) for i in range(max(labels) + 1)], splits

    def _arrays(self, root: Path) -> tuple[list[str], list[int], list[str], list[str | None]]:
        file = root / f"{self.name}.npz"
        if not file.is_file():
            self._write(root, file)
        paths: list[str] = []
        labels: list[int] = []
        splits: list[str | None] = []
        try:
            with np.load(file, allow_pickle=False) as arrays:
                classes = [str(name) for name in arrays["classes"]]
                for split in SETS[self.name].parts.values():
                    numbers = arrays[f"{split}_labels"].tolist()
                    paths += [f"{file.name}::{split}_images/{i}" for i in range(len(numbers))]
                    labels += numbers
                    splits += [split] * len(numbers)
        except Exception as error:  # zipfile and numpy raise nearly anything on damaged files
            raise FinetuneError(f"{file} is damaged ({str(error) or type(error).__name__}): remove it.") from None
        return paths, labels, classes, splits

    def _write(self, root: Path, file: Path) -> None:
        arrays: dict[str, np.ndarray] = {}
        for part, split in SETS[self.name].parts.items():
            data = self._open(root, part)
            arrays[f"{split}_images"] = np.asarray(data.data)
            arrays[f"{split}_labels"] = np.asarray(data.targets, dtype=np.int64)
            arrays["classes"] = np.array([str(name) for name in data.classes])
        partial = file.with_name(f".{os.getpid()}.{file.name}")
        try:
            np.savez(partial, **arrays)  # type: ignore[arg-type]  # numpy's own hint for its last argument
            os.replace(partial, file)
        except OSError as error:
            raise FinetuneError(f"{file} cannot be written: {error}.") from None
        finally:
            partial.unlink(missing_ok=True)

    def _open(self, root: Path, part: Any) -> Any:
        from torchvision import datasets

        info = SETS[self.name]
        kind: Callable[..., Any] = getattr(datasets, info.kind)
        options = {info.argument: part} if info.argument else {}
        try:
            return kind(root=str(root), download=self.download, **options)
        except Exception as error:  # absent, cut short, no network: torchvision raises RuntimeError, OSError and others
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self.download:
                raise FinetuneError(f"{self.name} cannot be fetched into data.root={self.root}: {first}") from None
            raise FinetuneError(
                f"data.root={self.root} does not hold {self.name} as torchvision's {info.kind} unpacks it ({first}). "
                "data.download=true fetches it."
            ) from None
