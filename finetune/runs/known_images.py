"""The images that a model was trained on or chosen by, recorded in its run and checked before it is scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.cache.image_cache import ImageCache, pixel_digest
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.files import write_text_atomic
from finetune.model_file import Model
from finetune.runs.folder import RunFolder

COLUMNS = ["sample", "patient", "split", "digest"]
ROLE_OF_SPLIT = {"train": "trained on", "val": "chosen by"}
"""Split of the fit -> its role for the model."""


@dataclass(frozen=True)
class KnownImages:
    """Whether images to be evaluated were used by the model's fit."""

    known: bool
    """Whether the model's run recorded its images."""
    same_set: bool = False
    """Whether some image of the table was in the fit's table, under the same name."""
    sentences: dict[str, str] = field(default_factory=dict)
    """Split of the fit -> a sentence, if its images or patients occur again."""
    tested: int = 0
    """Number of the images that are test images of the fit."""
    same_patient_ids: str = ""
    """A sentence on patients with the same id, if they may be different people."""

    def stop(self, split: str, on_leak: str) -> list[str]:
        """Warnings for the reader of the scores; an error if known images were not requested by `split`.

        Raises:
            FinetuneError: with on_leak="stop", if the images are from another split of the fit than `split`.
        """
        if not self.known:
            return ["There is no samples.csv beside the model: whether it was trained on these images is unknown."]
        leaks = [sentence for known_split, sentence in self.sentences.items() if known_split != split]
        if leaks and on_leak == "stop":
            raise FinetuneError(
                f"{' '.join(leaks)} Use the test split of its fit (without data.*, or with the same), or other "
                "images; data.audit.on_leak=warn scores them anyway."
            )
        return [*self.sentences.values(), *([self.same_patient_ids] if self.same_patient_ids else [])]


def write_samples(run: RunFolder, table: SampleTable, images: ImageCache) -> None:
    """Write samples.csv: sample, patient, split and the digest of the decoded pixels of every readable image; images of
    one colour have no digest, since they all look alike."""
    frame = table.frame[["path", "patient", "split"]].rename(columns={"path": "sample"})
    frame["digest"] = digests(images)
    frame = frame[~frame.index.isin(images.bad)]
    write_text_atomic(run.samples, frame.to_csv(index=False, lineterminator="\n"))


def digests(images: ImageCache) -> pd.Series:
    """Digests of the decoded pixels, empty for images of one colour."""
    flat = images.extremes[:, 0] == images.extremes[:, 1]
    return pd.Series(images.digests, dtype=str).mask(flat, "")


def samples_of_fit(model: Model) -> pd.DataFrame | None:
    """The samples that the model's run recorded; None if the model is not in its run, or the file is damaged."""
    if (run := RunFolder.of_model(model)) is None:
        return None
    try:
        return pd.read_csv(run.samples, dtype=str, keep_default_na=False)[COLUMNS]
    except (OSError, ValueError, KeyError):
        return None


def split_by_digest(model: Model) -> dict[str, str] | None:
    """Digest of the decoded pixels -> split of the fit, for single images (`digest_of`); an image in two splits counts
    for the one that matters more: train, then val. None where the run's record is not beside the model."""
    samples = samples_of_fit(model)
    if samples is None:
        return None
    order = [*ROLE_OF_SPLIT, *sorted(set(samples["split"]) - set(ROLE_OF_SPLIT))]
    ordered = samples[samples["digest"] != ""].sort_values("split", key=lambda split: split.map(order.index))
    return dict(ordered.drop_duplicates("digest")[["digest", "split"]].itertuples(index=False, name=None))


def digest_of(image: np.ndarray) -> str:
    """The digest of one decoded image, as samples.csv has it: empty for an image of one colour.

    The image must be decoded with the model's `min_decode_side`, as it was in the fit.
    """
    return "" if image.min() == image.max() else pixel_digest(image)


DRAWING = ("seed", "val_fraction", "test_fraction", "folds", "fold")
"""Settings of data that decide a drawn split."""


def recorded_split(run: RunFolder, table: SampleTable, data: Mapping[str, Any]) -> SampleTable:
    """The table with generated splits as the fit in `run` recorded them: a later version may draw others. A new image
    takes its patient's split.

    Only if `data` has the fit's settings of the drawing; splits of the data set stay.
    """
    try:
        config = run.read_config()["data"]
        record = pd.read_csv(run.samples, dtype=str, keep_default_na=False)[COLUMNS]
        same_drawing = all(config[key] == data[key] for key in DRAWING)
    except (FinetuneError, OSError, ValueError, KeyError, TypeError):
        return table
    if not table.generated_splits or not same_drawing:
        return table
    now = table.frame["split"]
    split_of_patient = record.groupby("patient")["split"].first()
    then = (
        table.frame["path"]
        .map(record.set_index("sample")["split"])
        .fillna(table.frame["patient"].map(split_of_patient))
    )
    is_generated = now.isin(table.generated_splits) & then.isin(table.generated_splits)
    return table.with_split(then.where(is_generated, now).tolist())


def is_table_of_fit(model: Model, table: SampleTable) -> bool:
    """Whether a table is that of the model's fit: same name, all its samples, at most as many new ones.

    Without the run, the names of the data set and of its folder decide.
    """
    data = model.provenance.get("data") or {}
    if data.get("name") != table.name:
        return False
    fit_samples = samples_of_fit(model)
    if fit_samples is None:
        return data.get("root") == table.root.name
    fit_rows = set(zip(fit_samples["sample"], fit_samples["patient"], strict=True))
    rows = set(zip(table.frame["path"], table.frame["patient"], strict=True))
    return bool(fit_rows) and fit_rows <= rows and 2 * len(fit_rows) >= len(rows)


def find(model: Model, table: SampleTable, images: ImageCache, rows: np.ndarray) -> KnownImages:
    """Find images and patients of the model's fit among `rows` of the table.

    Images are compared by their pixels, not by name.
    """
    fit_samples = samples_of_fit(model)
    if fit_samples is None:
        return KnownImages(known=False)
    all_digests = digests(images)
    has_digest = all_digests != ""
    pairs = set(zip(fit_samples["sample"], fit_samples["digest"], strict=True))
    same_set = bool(set(zip(table.frame["path"][has_digest], all_digests[has_digest], strict=True)) & pairs)
    row_digests, patients = all_digests.iloc[rows], table.frame["patient"].iloc[rows]
    sentences, same_patient_ids = {}, ""
    for split, verb in ROLE_OF_SPLIT.items():
        split_samples = fit_samples[fit_samples["split"] == split]
        n_same = int((row_digests.isin(set(split_samples["digest"])) & (row_digests != "")).sum())
        people = len(set(patients) & set(split_samples["patient"])) if table.has_patients else 0
        if n_same:
            sentences[split] = f"{n_same:,} of {len(rows):,} images are those that the model was {verb}, "
        elif people and same_set:
            sentences[split] = f"{people:,} of {patients.nunique():,} patients are those that the model was {verb}, "
        elif people and not same_patient_ids:
            same_patient_ids = (
                f"{people:,} of {patients.nunique():,} patients have the ids of patients that the model was {verb}: "
                "if they are the same people, the scores are too good."
            )
    test_samples = fit_samples[fit_samples["split"] == "test"]
    tested = int((row_digests.isin(set(test_samples["digest"])) & (row_digests != "")).sum())
    if same_set:  # images of one colour have no digest: compare names
        tested += int((table.frame["path"].iloc[rows].isin(set(test_samples["sample"])) & (row_digests == "")).sum())
    return KnownImages(
        True, same_set, {k: f"{v}so the scores are too good." for k, v in sentences.items()}, tested, same_patient_ids
    )
