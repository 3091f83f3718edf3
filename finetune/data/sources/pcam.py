"""PatchCamelyon: 327,680 patches of lymph node sections, tumour in the centre or not (Veeling et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data.decoding import containers
from finetune.data.sources.assemble import assemble, need_root
from finetune.data.sources.listing import need_columns, read_rows
from finetune.data.table import SampleTable
from finetune.errors import BadImage, FinetuneError, MissingExtra

SPLITS = {"train": "train", "valid": "val", "test": "test"}  # in the files' names -> here
STEM = "camelyonpatch_level_2_split_"
CLASSES = ["normal", "tumor"]
WHERE = "https://github.com/basveeling/pcam"


@dataclass
class PCam:
    """Source of the published HDF5 files, unpacked: camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5."""

    root: str | Path | None = None
    """Folder with the .h5 files and, where patients count, the *_meta.csv files."""

    def table(self) -> SampleTable:
        """One row per patch of the splits that are there."""
        root = need_root(self.root, "pcam", f"{STEM}train_x.h5 and so on from {WHERE}")
        inside = next((f for f in ("", "pcam/") if any((root / f).glob(f"{STEM}*_x.h5"))), None)
        if inside is None:
            packed = " They are still packed: gunzip them." if any(root.rglob(f"{STEM}*.h5.gz")) else ""
            raise FinetuneError(f"data.root={self.root} has no {STEM}*_x.h5.{packed} Get them at {WHERE}.")
        paths: list[str] = []
        splits: list[str] = []
        slides: list[str] | None = []
        labels, notes = [], []
        for name, split in SPLITS.items():
            stem = f"{inside}{STEM}{name}"
            if not (root / f"{stem}_x.h5").is_file():
                notes.append(f"{STEM}{name}_x.h5 is absent: there is no {split}.")
                continue
            truth = _truth(root / f"{stem}_y.h5")
            try:
                count = containers.length(root / f"{stem}_x.h5", "x")
            except BadImage as error:
                raise FinetuneError(str(error)) from None
            if len(truth) != count:
                raise FinetuneError(f"{root / stem}_x.h5 has {count:,} patches, but _y.h5 {len(truth):,} labels.")
            paths += [f"{stem}_x.h5::x/{i}" for i in range(count)]
            splits += [split] * count
            labels.append(truth)
            meta = root / f"{stem}_meta.csv"
            if slides is None or not meta.is_file():
                slides = None
                continue
            rows = read_rows(meta)
            need_columns(rows, {"wsi": "wsi"}, meta)
            if len(rows) != count:
                raise FinetuneError(f"{meta} has {len(rows):,} rows for {count:,} patches.")
            slides += rows["wsi"].str.strip().tolist()
        if slides is None:
            notes.append(
                f"Not every split has its {STEM}*_meta.csv: slides are unknown and every patch counts as its own."
            )
        return assemble(
            root, "pcam", paths, CLASSES, np.concatenate(labels), splits=splits, patients=slides, notes=notes
        )


def _truth(file: Path) -> np.ndarray:  # -> (N,) of 0 and 1
    if not file.is_file():
        raise FinetuneError(f"{file} is missing: the patches have no labels. Get it at {WHERE}.")
    try:
        import h5py
    except ImportError:
        raise MissingExtra("data=pcam needs h5py", "h5") from None
    try:
        with h5py.File(file, "r", locking=False) as opened:
            values = np.asarray(opened["y"])
    except Exception as error:
        raise FinetuneError(
            f"{file} is damaged or not PatchCamelyon's ({str(error) or type(error).__name__})."
        ) from None
    values = values.reshape(len(values), -1)
    if values.shape[1] != 1 or not np.isin(values, (0, 1)).all():
        raise FinetuneError(f"{file}: y must hold one 0 or 1 per patch.")
    return values[:, 0].astype(np.int64)
