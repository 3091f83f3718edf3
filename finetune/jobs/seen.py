"""Which pictures a model was made with, kept beside its run, so that it is never scored on them unawares."""

from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.cache import PictureCache
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.files import write_text_atomic
from finetune.package import Model

FILE = "samples.csv"
MADE = {"train": "trained on", "val": "chosen by"}
"""Split of the fit -> what it did with the pictures."""


def keep(run: Path, table: SampleTable, pictures: PictureCache) -> None:
    """Write samples.csv: sample, patient, split and the digest of the decoded pixels of every readable picture."""
    frame = table.frame[["path", "patient", "split"]].rename(columns={"path": "sample"})
    frame["digest"] = pictures.digests
    frame = frame[frame["digest"] != ""]
    write_text_atomic(run / FILE, frame.to_csv(index=False, lineterminator="\n"))


def again(model: Model, table: SampleTable, pictures: PictureCache, rows: np.ndarray) -> dict[str, str]:
    """Split of the model's fit -> a sentence, for those whose pictures or patients are among `rows` of the table.

    Pictures are compared by their pixels, whatever they are called; patients where the data set is.
    """
    path = (model.path.parent if model.path else Path()) / FILE
    if not path.is_file():
        return {}
    made = pd.read_csv(path, dtype=str, keep_default_na=False)
    digests = pd.Series([pictures.digests[row] for row in rows])
    patients = table.frame["patient"].iloc[rows]
    data = model.provenance.get("data") or {}
    own = (data.get("name"), data.get("root")) == (table.name, table.root.name)
    found = {}
    for split, verb in MADE.items():
        there = made[made["split"] == split]
        told = []
        if same := int(digests.isin(set(there["digest"])).sum()):
            told.append(f"{same:,} of {len(rows):,} pictures are those that the model was {verb}")
        if table.has_patients and own and not same and (people := set(patients) & set(there["patient"])):
            told.append(f"{len(people):,} of {patients.nunique():,} patients are those that the model was {verb}")
        if told:
            found[split] = f"{told[0]}, so the scores are too good."
    return found


def stop(found: dict[str, str], split: str, on_leak: str) -> list[str]:
    """The sentences, as warnings; an error where nobody asked for those very pictures.

    Raises:
        FinetuneError: with on_leak="stop", unless `split` names the split that they come from.
    """
    unasked = [sentence for of, sentence in found.items() if of != split]
    if unasked and on_leak == "stop":
        raise FinetuneError(
            f"{' '.join(unasked)} Use the split of its own fit (leave data.* away, or give the same), or other "
            "pictures; data.audit.on_leak=warn scores them all the same."
        )
    return list(found.values())
