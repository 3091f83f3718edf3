"""An image data set of the Hugging Face hub: its images are written once as files, then the hub is not needed.

Only data are fetched: `datasets` 4 and later runs no code from the hub.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.classes import check_classes, check_type
from finetune.data.sources.assemble import assemble
from finetune.data.sources.listing import need_columns, present, read_rows, shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, MissingExtra

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
IMAGES = "images"  # folder of all that is written; it appears by one rename, so a killed run leaves none half-filled
PART = ".images-part"
LISTING, FACTS = f"{IMAGES}/table.csv", f"{IMAGES}/source.json"
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
SUFFIXES |= {b"II*\x00": ".tif", b"MM\x00*": ".tif"}


@dataclass
class HuggingFace:
    """Source of a hub data set with a column of images and one of class labels."""

    root: str | Path | None = None
    """Folder that the images are written to, as images/SPLIT/NUMBER.png and so on."""
    repo: str | None = None
    """Name on the hub, ORGANISATION/NAME, or a folder of parquet files."""
    config: str | None = None
    """Which configuration of the data set, where it has several."""
    revision: str | None = None
    """Branch, tag or commit of the data set, by default its newest."""
    image: str | None = None
    """Column of the images, by default the only one of that type."""
    label: str | None = None
    """Column of the class, or of a list of classes; by default the only one with class names."""
    patient: str | None = None
    """Column that says whose image it is."""
    label_type: str | None = None
    """class takes whatever a label column holds for names of classes; null asks where it looks like numbers or text."""

    def __post_init__(self) -> None:
        check_type(self.label_type, self.label)

    def table(self) -> SampleTable:
        """One row per image, in the hub's order."""
        for value, setting in ((self.repo, "data.repo=ORGANISATION/NAME"), (self.root, "data.root=DIR")):
            if not value:
                raise FinetuneError(f"data=huggingface needs {setting}.")
        root = Path(str(self.root))
        request = {key: value for key, value in asdict(self).items() if key not in ("root", "label_type")}
        facts = _facts(root)
        if facts is None or facts["asked"] != request:
            if facts is not None:
                raise FinetuneError(
                    f"data.root={root} holds {facts['asked']['repo']} with other settings, see {FACTS} there. "
                    "Choose another folder."
                )
            facts = self._write_out(root, request)
        rows = read_rows(root / LISTING, ",")
        need_columns(rows, {name: name for name in ("path", "split", "labels", "patient")}, root / LISTING)
        is_present = np.array(present(root, rows["path"].tolist()))
        if not is_present.all():
            raise FinetuneError(
                f"{int((~is_present).sum()):,} of {len(rows):,} images of {self.repo} are gone from {root}. Remove "
                f"{root / IMAGES} to have them written again."
            )
        several = facts["kind"] == "multilabel"
        targets = np.zeros((len(rows), len(facts["classes"])))
        for row, cell in enumerate(rows["labels"]):
            numbers = [int(number) for number in cell.split()]
            targets[row, [n for n in numbers if n >= 0]] = 1
            if not several and numbers == [-1]:  # how the hub marks a hidden label
                targets[row] = np.nan
        notes = list(facts["notes"])
        if self.patient is None:
            notes.append("No patient column: every image counts as its own (data.patient=COLUMN).")
        if hidden := int(np.isnan(targets[:, 0]).sum()):
            notes.append(f"{hidden:,} images have no label; it is unknown.")
        return assemble(
            root,
            str(self.repo).rstrip("/").rpartition("/")[2],
            rows["path"].tolist(),
            facts["classes"],
            targets,
            kind=facts["kind"],
            splits=[split or None for split in rows["split"]],
            patients=None if self.patient is None else rows["patient"].tolist(),
            notes=notes,
        )

    def _write_out(self, root: Path, request: dict[str, Any]) -> dict[str, Any]:
        if (root / IMAGES).exists():
            raise FinetuneError(f"{root / IMAGES} exists but is not from data=huggingface. Choose another data.root.")
        parts = self._load()
        first = next(iter(parts.values()))
        image, label = self._columns(first.features)
        kind, classes, number_of = _classes(first, label, self.label_type)
        used = {name: SPLITS[name] for name in parts if name in SPLITS} or {next(iter(parts)): ""}
        notes = []
        if left := [name for name in parts if name not in used]:
            notes.append(f"Splits that are neither train, validation nor test are left out: {shorten(left)}.")
        if len(used) == 1:  # a single part is no split yet
            used = dict.fromkeys(used, "")
        try:
            part = root / PART
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
            part.mkdir(parents=True)
            with (part / Path(LISTING).name).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["path", "split", "labels", "patient"])
                for name, split in used.items():
                    folder = name if name in SPLITS else "all"
                    (part / folder).mkdir()
                    for number, row in enumerate(_undecoded(parts[name], image)):
                        path = f"{folder}/{_write_image(part / folder, number, row[image])}"
                        values = row[label] if kind == "multilabel" else [row[label]]
                        numbers = " ".join(str(number_of.get(value, -1)) for value in values or ())
                        writer.writerow([f"{IMAGES}/{path}", split, numbers, self._patient(row)])
            facts = {"asked": request, "kind": kind, "classes": classes, "notes": notes}
            (part / Path(FACTS).name).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            part.rename(root / IMAGES)
        except OSError as error:
            raise FinetuneError(f"data.root={root}: the images of {self.repo} cannot be written: {error}.") from None
        return facts

    def _load(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError:
            raise MissingExtra("data=huggingface needs datasets", "huggingface") from None
        try:
            return dict(datasets.load_dataset(self.repo, self.config, revision=self.revision))
        except Exception as error:  # no network, no such set, no such configuration, damaged files
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise FinetuneError(f"data.repo={self.repo} cannot be loaded: {first}.") from None

    def _columns(self, features: Any) -> tuple[str, str]:
        import datasets

        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [name for name, kind in features.items() if _names(kind) is not None]
        selected = []
        for setting, name, candidates in (("image", self.image, images), ("label", self.label, labels)):
            if name is not None and name not in features:
                raise FinetuneError(f"data.{setting}={name} is not a column of {self.repo}: {', '.join(features)}.")
            if name is None and len(candidates) != 1:
                what = f"several such columns ({', '.join(candidates)})" if candidates else "no such column"
                raise FinetuneError(f"{self.repo} has {what}: name it, data.{setting}=, one of {', '.join(features)}.")
            selected.append(name or candidates[0])
        if selected[0] not in images:
            raise FinetuneError(f"data.image={selected[0]} of {self.repo} holds no images but {features[selected[0]]}.")
        if self.patient is not None and self.patient not in features:
            raise FinetuneError(f"data.patient={self.patient} is not a column of {self.repo}: {', '.join(features)}.")
        return selected[0], selected[1]

    def _patient(self, row: dict[str, Any]) -> str:
        return "" if self.patient is None else str(row[self.patient])


def _facts(root: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((root / FACTS).read_text(encoding="utf-8"))
        return facts if {"asked", "kind", "classes", "notes"} <= facts.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _names(feature: Any) -> list[str] | None:
    """The class names of a feature, or of a list of it."""
    inner = getattr(feature, "feature", feature)
    return list(getattr(inner, "names", None) or []) or None


def _classes(data: Any, label: str, label_type: str | None) -> tuple[str, list[str], dict[Any, int]]:
    """Kind, names of the classes, value -> number; a plain column of text or numbers has those that occur in it."""
    feature = data.features[label]
    several = hasattr(feature, "feature")
    names = _names(feature)
    if names is None:
        if several or str(getattr(feature, "dtype", "")).startswith("float"):
            raise FinetuneError(
                f"data.label={label} holds {feature}: only classes or lists of named classes are read. Numbers are not "
                "learned yet: sort them into a few ranges, in a column of names."
            )
        values = sorted(value for value in data.unique(label) if value is not None)
        check_classes(label, [str(value) for value in values], len(data), label_type)
        return "multiclass", [str(value) for value in values], {value: i for i, value in enumerate(values)}
    return ("multilabel" if several else "multiclass"), names, {i: i for i in range(len(names))}


def _undecoded(data: Any, image: str) -> Iterator[dict[str, Any]]:
    import datasets

    return iter(data.cast_column(image, datasets.Image(decode=False)))


def _write_image(folder: Path, number: int, image: dict[str, Any] | None) -> str:
    """The image's bytes as they are, under a name that its number and its first bytes decide."""
    content = (image or {}).get("bytes")
    if content is None and image and image.get("path"):
        content = Path(image["path"]).read_bytes()
    content = content or b""
    suffix = next((suffix for magic, suffix in SUFFIXES.items() if content.startswith(magic)), ".img")
    name = f"{number:06d}{suffix}"
    (folder / name).write_bytes(content)
    return name
