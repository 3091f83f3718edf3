"""RSNA Pneumonia Detection Challenge (2018): 26,684 labelled frontal chest X-rays of NIH ChestX-ray14, read again by
radiologists, with boxes around opacities.

Shih et al., Radiology: AI 2019. DICOM as published, or PNG or JPEG under the same names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from finetune.data.annotations import BOXES, Box, Boxes
from finetune.data.findings import canonical
from finetune.data.labels import read_raw_labels
from finetune.data.sources import chest
from finetune.data.sources.boxed import TARGETS, BoxList, Faults, header_sizes, with_boxes
from finetune.data.sources.chestxray_boxes import PUBLISHED
from finetune.data.sources.listing import absent_note, by_stem, need_columns, read_rows, shorten
from finetune.data.sources.masks import check_target
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, one_of

LABELS, CLASSES, IMAGES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
WHERE = "https://www.kaggle.com/competitions/rsna-pneumonia-detection-challenge"
FINDINGS = ("Pneumonia", "Lung_Opacity")
SIDES = ("x", "y", "width", "height")


@dataclass
class Rsna:
    """Source of the challenge's training images; those of its test were never labelled in public.

    Target = 1 says that a reader saw an opacity suspicious for pneumonia. The boxes are the annotation `boxes`
    (see finetune/data/annotations.py). A patientId is one per image; who is whose follow-up is only known where
    pneumonia-challenge-dataset-mappings_2018.json lies beside the tables: then patients are those of ChestX-ray14.
    With target=boxes they are the target; an image with Target = 0 is a negative.
    """

    targets: ClassVar[tuple[str, ...]] = TARGETS
    """The values of `target` that these data have."""
    root: str | Path = "data/rsna"
    """Folder with stage_2_train_labels.csv and stage_2_train_images/."""
    finding: str = "Pneumonia"
    """Name of the finding, with the same labels under either name: Pneumonia or Lung_Opacity."""
    target: str = "class"
    """class or boxes."""
    on_bad: str = "stop"
    """What a box that makes no sense does: stop, or skip."""

    def __post_init__(self) -> None:
        self.finding = canonical(self.finding)
        if self.finding not in FINDINGS:
            raise one_of("data.finding", self.finding, FINDINGS)
        check_target(self.target, self.targets)

    def table(self) -> SampleTable:
        """One row per image that is present; its boxes are several rows of the table."""
        root = Path(self.root)
        listing = root / LABELS
        if not listing.is_file():
            what = f"has no {LABELS}" if root.is_dir() else "is not a folder"
            raise FinetuneError(
                f"data.root={self.root} {what} (looked in {root.absolute()}).\n"
                f"Get the challenge's data at {WHERE} and set data.root=DIR."
            )
        rows = read_rows(listing)
        need_columns(rows, {c: c for c in ("patientId", "Target", *SIDES)}, listing)
        boxes = self._boxes(rows, listing)
        image, target = rows["patientId"].str.strip(), pd.Series(read_raw_labels(rows["Target"], listing))
        per_image = target.groupby(image.to_numpy(), sort=False)
        if torn := sorted(per_image.nunique().loc[lambda n: n != 1].index):
            raise FinetuneError(f"{listing}: Target is blank or differs between the rows of {shorten(torn)}.")
        raw_labels = per_image.first()
        where = by_stem(root, (IMAGES,))
        is_present = np.array([name in where for name in raw_labels.index])
        if not is_present.any():
            raise FinetuneError(
                f"data.root={self.root}: none of the {len(raw_labels):,} images of {LABELS} is in {IMAGES}/. "
                f"Unpack the archive from {WHERE} there, or set data.root=DIR."
            )
        notes = absent_note(int(is_present.sum()), len(raw_labels), root)
        raw_labels = raw_labels[is_present]
        names = pd.Series(raw_labels.index, dtype=object)
        frame = pd.DataFrame({"path": names.map(where), "patient": names, "split": None}, dtype=object)
        patients, patient_note = self._patients(root, names)
        notes.append(patient_note)
        if patients is not None:
            frame["patient"] = patients
        if (root / CLASSES).is_file():
            frame["reading"] = names.map(self._readings(root / CLASSES)).fillna("").astype(object)
        table = chest.sample_table(
            frame,
            raw_labels.to_numpy()[:, None],
            [self.finding],
            root=root,
            name="rsna",
            notes=notes,
            has_patients=patients is not None,
            annotations={BOXES: [Boxes.from_sides(boxes.get(name, [])) for name in names]},
        )
        if self.target == "class":
            return table
        entries, sentences = self._targets(table, [boxes.get(name, []) for name in names], raw_labels.to_numpy() > 0)
        return with_boxes(replace(table, notes=[*notes, *sentences]), entries)

    def _targets(
        self, table: SampleTable, listed: list[list[Box]], positive: np.ndarray
    ) -> tuple[list[Boxes | None], list[str]]:
        """The boxes of each row compared with its image and its Target, and the sentences on them."""
        faults, boxes = Faults(self.on_bad), BoxList()
        paths, shown = table.paths, [row for row, of_row in enumerate(listed) if of_row]
        sizes = np.full((len(table), 2), np.nan)
        sizes[shown] = header_sizes(table.root, [paths[row] for row in shown])
        smaller = 0
        for row, of_row in enumerate(listed):
            if bool(of_row) != positive[row]:
                faults.add("images whose Target and boxes differ", f"{LABELS}, {paths[row]}: {len(of_row)} box(es)")
                boxes.lost.add(row)
                continue
            by_y, by_x = np.nan_to_num(sizes[row] / PUBLISHED, nan=1.0).tolist()
            smaller += bool(of_row) and (by_y, by_x) != (1, 1)
            for label, left, top, width, height in of_row:
                corners = (left * by_x, top * by_y, (left + width) * by_x, (top + height) * by_y)
                boxes.add(row, label, corners, f"{LABELS}, {paths[row]}")
        entries = boxes.per_image(sizes, faults)
        note = f"{smaller:,} images with boxes are not of the published {PUBLISHED} px: boxes are scaled."
        return entries, [note] * (smaller > 0) + faults.settle()

    def _boxes(self, rows: pd.DataFrame, listing: Path) -> dict[str, list[Box]]:
        box_rows = rows[(rows[list(SIDES)].apply(lambda column: column.str.strip()) != "").any(axis=1)]
        numbers = np.column_stack([pd.to_numeric(box_rows[side], errors="coerce").to_numpy(float) for side in SIDES])
        wrong = box_rows.index[~(np.isfinite(numbers) & (numbers >= 0)).all(axis=1)]
        if len(wrong):
            raise FinetuneError(
                f"{listing}, line {wrong[0] + 2}: x, y, width, height are {rows.loc[wrong[0], list(SIDES)].tolist()}; "
                "a box needs four numbers of 0 or more, an image without one leaves all blank."
            )
        boxes: dict[str, list[Box]] = {}
        for name, sides in zip(box_rows["patientId"].str.strip(), numbers, strict=True):
            left, top, width, height = sides.tolist()
            boxes.setdefault(name, []).append((self.finding, left, top, width, height))
        return boxes

    def _patients(self, root: Path, names: pd.Series) -> tuple[pd.Series | None, str]:
        file = root / MAPPING
        if not file.is_file():
            return None, (
                "patientId is one per image: two images of a person may fall into two splits. "
                f"{MAPPING} (from RSNA) beside {LABELS} identifies patients."
            )
        try:
            nih = {entry["subset_img_id"]: str(entry["img_id"]) for entry in json.loads(file.read_text("utf-8"))}
        except (ValueError, KeyError, TypeError) as error:
            raise FinetuneError(f"{file} is not the published list of subset_img_id and img_id: {error!r}.") from None
        patients = names.map(lambda name: nih.get(name, "").partition("_")[0].lstrip("0"))
        if lacking := int((patients == "").sum()):
            raise FinetuneError(f"{file} lacks {lacking:,} of the {len(names):,} images of {LABELS}.")
        return patients.astype(object), f"Patients are those of NIH ChestX-ray14, by {MAPPING}."

    def _readings(self, file: Path) -> dict[str, str]:
        rows = read_rows(file)
        need_columns(rows, {"patientId": "patientId", "class": "class"}, file)
        return dict(zip(rows["patientId"].str.strip(), rows["class"].str.strip(), strict=True))
