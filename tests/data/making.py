"""Small tables and images that the tests of the data rooms share."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from finetune.data.table import SampleTable


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(image: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def make_table(
    root: Path,
    patients: list[str] | None = None,
    targets: list[list[float]] | None = None,
    splits: list[str | None] | None = None,
    *,
    paths: list[str] | None = None,
    kind: str = "multilabel",
) -> SampleTable:
    """A table of a.png, b.png, ... whose parts default to one patient each, one class, no split."""
    n = next(len(part) for part in (patients, targets, splits, paths, ["x"]) if part is not None)
    paths = paths or [f"{i:04d}.png" for i in range(n)]
    values = np.array(targets if targets is not None else [[i % 2] for i in range(n)], dtype=float)
    classes = [f"c{k}" for k in range(values.shape[1])]
    frame = pd.DataFrame(
        {"path": paths, "patient": patients or paths, "split": splits or [None] * n},
        dtype=object,
    )
    for k, name in enumerate(classes):
        frame[f"target_{name}"] = values[:, k]
    return SampleTable(frame, classes, kind, root, "toy", has_patients=patients is not None)


def save_dicom(path: Path, image: np.ndarray | None = None, **header: str) -> Path:
    """A gray DICOM file of 8 bits with further header elements, e.g. PatientID."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    image = noise(4, 4) if image is None else image
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    for key, value in header.items():
        setattr(ds, key, value)
    ds.PixelData = image.tobytes()
    ds["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def make_images(root: Path, n: int, *, side: int = 8, colour: tuple[int, ...] = ()) -> SampleTable:
    """n gray images on disk (RGB where named in `colour`) and their table."""
    for i in range(n):
        save(noise(side, side + 1, *((3,) if i in colour else ()), seed=i), root / f"{i:04d}.png")
    return make_table(root, splits=["train"] * n)
