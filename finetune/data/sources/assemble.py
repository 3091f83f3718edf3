"""From a source's columns to the sample table, for sources with simple labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.table import SampleTable, Strata
from finetune.errors import FinetuneError


def assemble(
    root: Path,
    name: str,
    paths: Sequence[str],
    classes: Sequence[str],
    labels: np.ndarray,
    *,
    kind: str = "multiclass",
    splits: Sequence[str | None] | None = None,
    patients: Sequence[str] | None = None,
    metadata: Mapping[str, Sequence[object] | pd.Series | np.ndarray] | None = None,
    notes: Sequence[str] = (),
    strata: np.ndarray | None = None,
) -> SampleTable:
    """The checked table. `labels`: the number of each image's class (N,), or targets (N, K). `strata` (N, L): what
    splits are balanced over, if that is more than the targets."""
    labels = np.asarray(labels)
    targets = (labels[:, None] == np.arange(len(classes))).astype(float) if labels.ndim == 1 else labels.astype(float)
    split_names = splits if splits is not None else [None] * len(paths)
    frame = pd.DataFrame(
        {"path": list(paths), "patient": list(patients or paths), "split": list(split_names)}, dtype=object
    )
    columns = {f"target_{name}": targets[:, k] for k, name in enumerate(classes)}
    more = {key: pd.Series(list(values)) for key, values in (metadata or {}).items()}
    return SampleTable(
        frame=pd.concat([frame, pd.DataFrame(columns), pd.DataFrame(more)], axis=1),
        classes=list(classes),
        kind=kind,
        root=root,
        name=name,
        metadata=list(more),
        has_patients=patients is not None,
        notes=list(notes),
        strata=None if strata is None else Strata(strata),
    ).check()


def need_root(root: str | Path | None, data: str, what: str) -> Path:
    """`data.root` as an existing folder, or an error that says what it must contain."""
    if not root:
        raise FinetuneError(f"data={data} needs data.root=DIR, the folder with {what}.")
    if not Path(root).is_dir():
        raise FinetuneError(f"data.root={root} is not a folder (looked at {Path(root).absolute()}). Wanted: {what}.")
    return Path(root)
