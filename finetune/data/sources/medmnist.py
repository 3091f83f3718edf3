"""The twelve two-dimensional sets of MedMNIST, 28 to 224 pixels (Yang et al., Scientific Data 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.decoding import containers
from finetune.data.sources.assemble import assemble, need_root
from finetune.data.sources.chestxray import FINDINGS
from finetune.data.sources.listing import shorten
from finetune.data.table import SPLITS, SampleTable
from finetune.errors import BadImage, FinetuneError, MissingExtra, one_of

ORGANS = "bladder femur-left femur-right heart kidney-left kidney-right liver lung-left lung-right pancreas spleen"
CLASSES = {  # in the order of the labels' numbers
    "bloodmnist": "basophil|eosinophil|erythroblast|immature granulocyte|lymphocyte|monocyte|neutrophil|platelet",
    "breastmnist": "malignant|normal or benign",
    "chestmnist": "|".join(FINDINGS),  # NIH ChestX-ray14's own names and order
    "dermamnist": "AKIEC|BCC|BKL|DF|MEL|NV|VASC",  # HAM10000's, as data=isic has them
    "octmnist": "choroidal neovascularization|diabetic macular edema|drusen|normal",
    "organamnist": ORGANS.replace(" ", "|"),
    "organcmnist": ORGANS.replace(" ", "|"),
    "organsmnist": ORGANS.replace(" ", "|"),
    "pathmnist": "adipose|background|debris|lymphocytes|mucus|smooth muscle|normal colon mucosa"
    "|cancer-associated stroma|colorectal adenocarcinoma epithelium",
    "pneumoniamnist": "normal|pneumonia",
    "retinamnist": "0|1|2|3|4",  # grades of diabetic retinopathy; learned as classes
    "tissuemnist": "Collecting Duct, Connecting Tubule|Distal Convoluted Tubule|Glomerular endothelial cells"
    "|Interstitial endothelial cells|Leukocytes|Podocytes|Proximal Tubule Segments|Thick Ascending Limb",
}
SIZES = (28, 64, 128, 224)
WHERE = "https://zenodo.org/records/10519652"


@dataclass
class MedMnist:
    """Source of a MedMNIST file, NAME.npz (28 pixels) or NAME_64.npz, NAME_128.npz, NAME_224.npz."""

    root: str | Path | None = None
    """Folder with the .npz files."""
    name: str = "medmnist"
    """Which of the twelve sets, e.g. pneumoniamnist."""
    size: int | None = None
    """Side of the images in the file: 28, 64, 128 or 224; by default the largest file that is there."""
    download: bool = False
    """Fetch the file through the medmnist package where it is absent."""

    def table(self) -> SampleTable:
        """One row per image, train first; the published split."""
        if self.name == "medmnist":
            raise FinetuneError(f"data=medmnist needs data.name=NAME: choose from {', '.join(CLASSES)}.")
        if self.name not in CLASSES:
            raise one_of("data.name", self.name, CLASSES)
        if self.size is not None and self.size not in SIZES:
            raise one_of("data.size", self.size, SIZES)
        root = self._folder()
        file = self._file(root)
        classes = CLASSES[self.name].split("|")
        paths: list[str] = []
        splits: list[str] = []
        parts = []
        for split in SPLITS:
            labels = self._labels(file, split, len(classes))
            try:
                count = containers.length(file, f"{split}_images")
            except BadImage as error:
                raise FinetuneError(str(error)) from None
            if len(labels) != count:
                raise FinetuneError(f"{file} has {count:,} {split} images but {len(labels):,} labels.")
            paths += [f"{file.name}::{split}_images/{i}" for i in range(count)]
            splits += [split] * count
            parts.append(labels)
        several = self.name == "chestmnist"
        return assemble(
            root,
            self.name,
            paths,
            classes,
            np.concatenate(parts) if several else np.concatenate(parts)[:, 0],
            kind="multilabel" if several else "multiclass",
            splits=splits,
            notes=[f"{file.name} is read. MedMNIST names no patients: every image counts as its own."],
        )

    def _folder(self) -> Path:
        if self.root and self.download:
            Path(self.root).mkdir(parents=True, exist_ok=True)
        return need_root(self.root, "medmnist", f"{self.name}.npz from {WHERE}")

    def _file(self, root: Path) -> Path:
        names = {size: f"{self.name}{'' if size == 28 else f'_{size}'}.npz" for size in SIZES}
        sizes_present = [size for size in reversed(SIZES) if (root / names[size]).is_file()]
        size = self.size or (sizes_present[0] if sizes_present else 28)
        if size not in sizes_present:
            if self.download:
                _fetch(root, self.name, size)
            if not (root / names[size]).is_file():
                have = (
                    f" There is {shorten(names[s] for s in sizes_present)}: leave out data.size."
                    if sizes_present
                    else ""
                )
                raise FinetuneError(
                    f"data.root={self.root} has no {names[size]}.{have} Get it at {WHERE}, or type data.download=true."
                )
        return root / names[size]

    def _labels(self, file: Path, split: str, count: int) -> np.ndarray:  # -> (N, 1) or (N, 14) integers
        try:
            with np.load(file, allow_pickle=False) as archive:
                labels = archive[f"{split}_labels"]
        except Exception as error:  # zipfile and numpy raise nearly anything on damaged files
            raise FinetuneError(
                f"{file} is not a MedMNIST file, or damaged ({str(error) or type(error).__name__})."
            ) from None
        several = self.name == "chestmnist"
        if labels.ndim != 2 or labels.shape[1] != (count if several else 1):
            raise FinetuneError(f"{file}: {split}_labels has the shape {labels.shape}, not that of {self.name}.")
        if labels.size and not 0 <= labels.min() <= labels.max() <= (1 if several else count - 1):
            raise FinetuneError(f"{file}: {split}_labels holds {labels.max()}; {self.name} has {count} classes.")
        return labels.astype(np.int64)


def _fetch(root: Path, name: str, size: int) -> None:
    try:
        import medmnist
    except ImportError:
        raise MissingExtra("data.download=true needs medmnist", "medmnist") from None
    try:
        kind = getattr(medmnist, medmnist.INFO[name]["python_class"])
        kind(split="test", root=str(root), size=size, download=True)
    except Exception as error:  # no network, a full disk, a wrong checksum
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FinetuneError(f"{name} ({size} px) cannot be fetched: {first} Get it by hand at {WHERE}.") from None
