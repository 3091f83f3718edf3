"""Checks the data before training: leaks between splits, and labels that cannot be learned or scored.

Each check is a function in TABLE_CHECKS or IMAGE_CHECKS that yields leaks (records) and warnings (sentences).
Of a patient only the id is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from finetune.data.audit import exposure, other_targets
from finetune.data.audit.near_duplicates import Pair
from finetune.data.audit.near_pairs import LISTED, SHEET, records
from finetune.data.audit.shortcuts import STRONG, Shortcut, shortcuts
from finetune.data.sources.listing import shorten
from finetune.data.table import SPLITS, SampleTable
from finetune.data.targets import LEARNED, types_in_words
from finetune.errors import FinetuneError, one_of

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import ImageCache

MIN_POSITIVES = 10  # positives below which a class's score in a split is uncertain
FILE = "audit.json"
EXAMPLES = 20  # of a leak, written into audit.json


@dataclass
class Leak:
    """The same patient or image in two splits."""

    kind: str
    """patient, image (equal to the last pixel) or near (certainly a slightly changed copy)."""
    splits: list[str]
    """The two splits."""
    count: int
    """Number of patients or pairs of images."""
    examples: list[Any]
    """The first of them: patient ids, or pairs of paths, near copies with their similarity."""
    text: str
    """The same in a sentence."""


@dataclass
class Audit:
    """What the checks found; `to_dict` is audit.json."""

    name: str
    hash: str
    has_patients: bool
    counts: dict[str, Any]
    """split -> images, patients, classes -> positive, negative, unknown; targets, where there are other targets."""
    leaks: list[Leak] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes of the data source."""
    bad_images: list[dict[str, str]] = field(default_factory=list)
    """path and reason of every image that cannot be read."""
    shortcuts: list[Shortcut] = field(default_factory=list)
    """Metadata columns that predict a class without the image, strongest first."""
    near: list[dict[str, Any]] = field(default_factory=list)
    """Near copies, those in two splits first: paths, splits, alike, detail, certainty (certain or possible)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, fit for JSON."""
        return asdict(self)

    def stop_on_leak(self, on_leak: str = "stop", run: Path | None = None) -> None:
        """Raise a FinetuneError that names the leaks, unless there are none or on_leak="warn".

        `run`: the folder that holds audit.json and near_copies.png, for the message.
        """
        if on_leak not in ("stop", "warn"):
            raise one_of("data.audit.on_leak", on_leak, ("stop", "warn"))
        if not self.leaks or on_leak == "warn":
            return
        lines = [f"table {self.name}: the splits leak, so the scores would be too good."]
        lines += [f"  {leak.text}" for leak in self.leaks]
        near = any(leak.kind == "near" for leak in self.leaks)
        if near and run is not None:
            lines.append(f"Look at the near copies in {run / SHEET}; all pairs are listed in {run / FILE}.")
        elif run is not None:
            lines.append(f"The first {EXAMPLES} of each kind are listed in {run / FILE}.")
        lines.append("Repair the split or remove the copies.")
        if near:
            lines.append(
                "data.audit.near=false continues without the search for near copies; patients and equal images in two "
                "splits still stop the run."
            )
        lines.append("data.audit.on_leak=warn continues despite all leaks.")
        raise FinetuneError("\n".join(lines))


def audit_table(table: SampleTable) -> Audit:
    """The checks that need no image; the table's splits are assigned."""
    audit = Audit(table.name, table.hash(), table.has_patients, counts(table), notes=list(table.notes))
    for check in TABLE_CHECKS:
        _add_results(audit, check(table))
    return audit


def audit_images(early: Audit, table: SampleTable, images: ImageCache, near: Sequence[Pair] = ()) -> Audit:
    """`early` with what the decoded images add; it counts only what can be read. `near`: pairs of near copies."""
    bad = sorted(images.bad)
    paths = table.frame["path"].to_numpy(object)
    audit = replace(
        early,
        counts=counts(table, bad, images),
        leaks=list(early.leaks),
        warnings=list(early.warnings),
        bad_images=[{"path": paths[row], "reason": images.bad[row]} for row in bad],
        shortcuts=shortcuts(table, {"image height": images.sizes[:, 0], "image width": images.sizes[:, 1]}),
        near=records(table, near),
    )
    if bad:
        audit.warnings.append(f"{len(bad):,} of {len(table):,} images cannot be read and are left out.")
    for check in IMAGE_CHECKS:
        _add_results(audit, check(table, images))
    _add_results(audit, near_copies(table, near))
    for shortcut in audit.shortcuts:
        if shortcut.low > STRONG:
            auroc = f"{shortcut.auroc:.2f} ({shortcut.low:.2f}–{shortcut.high:.2f})"
            audit.warnings.append(
                f"{shortcut.column} alone predicts {shortcut.label} with an AUROC of {auroc}: a network that "
                "recognises it in the image need not look at the finding."
            )
    return audit


def check_trainable(table: SampleTable) -> None:
    """Raise a FinetuneError where training is impossible: no train images, or a class that train lacks.

    A multilabel finding without a positive in train gives only a warning in the audit: the others can be learned.
    """
    other_targets.check_boxes(table)
    if unlearned := {name: kind for name, kind in table.target_types.items() if kind not in LEARNED}:
        raise FinetuneError(
            f"table {table.name}: task=classify learns classes and findings, not {types_in_words(unlearned)}. "
            "task=segment learns masks, task=detect boxes."
        )
    train = table.rows("train")
    if len(train) == 0:
        raise FinetuneError(f"table {table.name} has no train images.")
    targets = table.targets()
    if np.isnan(targets[train]).all():
        raise FinetuneError(f"table {table.name}: every label of the {len(train):,} train images is unknown.")
    if table.kind != "multiclass":
        if not (targets[train] > 0).any():
            names = shorten(table.classes, 5)
            raise FinetuneError(f"table {table.name}: no train image is positive for any of {names}.")
        return
    in_train = np.nan_to_num(targets[train]).sum(axis=0) > 0
    for split in ("val", "test"):
        positive = np.nan_to_num(targets[table.rows(split)]).sum(axis=0) > 0
        classes = zip(table.classes, in_train, positive, strict=True)
        if never := [name for name, trained, present in classes if present > trained]:
            raise FinetuneError(
                f"table {table.name}: class {shorten(never)} is in {split} but never in train, so it cannot be "
                "learned. Add train images of it, or leave its images out."
            )
    if in_train.sum() < 2:
        raise FinetuneError(f"table {table.name}: all train images are of one class; two are needed.")


def counts(table: SampleTable, without: list[int] | None = None, images: ImageCache | None = None) -> dict[str, Any]:
    """split -> images, patients and per class how many are positive (0.5 or more), negative, unknown."""
    targets, patients = table.targets(), table.frame["patient"].to_numpy(object)
    counts_by_split: dict[str, Any] = {}
    for split in SPLITS:
        rows = np.setdiff1d(table.rows(split), without or [])
        if len(rows) == 0:
            continue
        part = targets[rows]
        unknown = np.isnan(part).sum(axis=0)
        positive = (np.nan_to_num(part) >= 0.5).sum(axis=0)
        counts_by_split[split] = {
            "images": len(rows),
            "patients": len(set(patients[rows])) if table.has_patients else None,
            "classes": {
                name: {
                    "positive": int(positive[k]),
                    "negative": int(len(rows) - positive[k] - unknown[k]),
                    "unknown": int(unknown[k]),
                }
                for k, name in enumerate(table.classes)
            },
        }
        if table.other_targets:
            counts_by_split[split]["targets"] = other_targets.target_counts(table, rows, images)
    return counts_by_split


# -- checks of the table ----------------------------------------------------------------------------------------------


def patients_in_two_splits(table: SampleTable) -> Iterator[Leak | str]:
    """Patients with images in two splits."""
    if not table.has_patients:
        return
    patients = table.frame["patient"].to_numpy(object)
    members = {split: set(patients[table.rows(split)]) for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        if shared := sorted(members[first] & members[second]):
            text = f"{len(shared):,} patient(s) are in both {first} and {second}: {shorten(shared)}."
            yield Leak("patient", [first, second], len(shared), shared[:EXAMPLES], text)


def rare_classes(table: SampleTable) -> Iterator[Leak | str]:
    """Classes with too few examples in a split to be learned or scored."""
    table_counts = counts(table)
    for split in SPLITS:
        if split not in table_counts:
            if "train" in table_counts:  # a table to evaluate a finished model on needs one split only
                yield f"There are no {split} images."
            continue
        classes = table_counts[split]["classes"]
        never = [name for name, n in classes.items() if n["positive"] == 0]
        always = [name for name, n in classes.items() if n["negative"] == 0 and n["positive"] > 0]
        rare = [f"{name} ({n['positive']})" for name, n in classes.items() if 0 < n["positive"] < MIN_POSITIVES]
        end = "it cannot be learned" if split == "train" else "its AUROC is undefined there"
        if never:
            yield f"{split} has no positive image for {shorten(never, 20)}: {end}."
        if always:
            yield f"{split} has no negative image for {shorten(always, 20)}: {end}."
        if rare:
            what = "little to learn from" if split == "train" else "their scores are uncertain"
            yield f"{split} has fewer than {MIN_POSITIVES} positive images for {shorten(rare, 20)}: {what}."


# -- checks of the decoded images -----------------------------------------------------------------------------------


def equal_images(images: ImageCache) -> list[list[int]]:
    """Groups of rows whose images are equal to the last pixel; images of a single colour are left out."""
    digests = np.array(images.digests, dtype=object)
    usable = (digests != "") & (images.extremes[:, 0] < images.extremes[:, 1])
    rows = pd.Series(np.flatnonzero(usable))
    return [list(group) for _, group in rows.groupby(digests[usable]) if len(group) > 1]


def same_images(table: SampleTable, images: ImageCache) -> Iterator[Leak | str]:
    """Images equal to the last pixel: a leak between splits, a note within one, a contradiction if labels differ."""
    groups = equal_images(images)
    paths, splits = (table.frame[column].to_numpy(object) for column in ("path", "split"))
    for split_a, split_b in combinations(SPLITS, 2):
        pairs = []
        for group in groups:
            first = {split: next((row for row in group if splits[row] == split), None) for split in (split_a, split_b)}
            if first[split_a] is not None and first[split_b] is not None:
                pairs.append([paths[first[split_a]], paths[first[split_b]]])
        if pairs:
            examples = shorten(f"{a} = {b}" for a, b in sorted(pairs))
            text = f"{len(pairs):,} image(s) are in both {split_a} and {split_b}, equal to the last pixel: {examples}."
            yield Leak("image", [split_a, split_b], len(pairs), sorted(pairs)[:EXAMPLES], text)
    repeats = sum(len(group) - len({splits[row] for row in group}) for group in groups)
    if repeats:
        yield f"{repeats:,} image(s) are copies of another in the same split, equal to the last pixel."
    targets = table.targets()
    torn = []
    for group in groups:
        labels = targets[group]
        known = ~np.isnan(labels)
        high = np.where(known, labels, -np.inf).max(axis=0)
        low = np.where(known, labels, np.inf).min(axis=0)
        if (known.any(axis=0) & (high != low)).any():
            torn.append(paths[group[0]])
    if torn:
        yield f"{len(torn):,} image(s) appear several times with contradicting labels: {shorten(sorted(torn))}."


def near_copies(table: SampleTable, near: Sequence[Pair]) -> Iterator[Leak | str]:
    """Recompressed, resized, brightened or cropped copies: certain ones are leaks, possible ones only a warning."""
    paths, splits, patients = (table.frame[column].to_numpy(object) for column in ("path", "split", "patient"))
    if len(near) > LISTED:
        yield f"audit.json lists the first {LISTED:,} of {len(near):,} pairs of near copies."
    certain = [pair for pair in near if pair.certainty == "certain"]
    for split_a, split_b in combinations(SPLITS, 2):
        divided = sorted(
            [paths[pair.first], paths[pair.second], pair.alike]
            for pair in certain
            if {splits[pair.first], splits[pair.second]} == {split_a, split_b}
        )
        if divided:
            examples = shorten(f"{a} ~ {b}" for a, b, _ in divided)
            text = f"{len(divided):,} pair(s) of near copies are divided between {split_a} and {split_b}: {examples}."
            yield Leak("near", [split_a, split_b], len(divided), divided[:EXAMPLES], text)
    if within := [pair for pair in certain if splits[pair.first] == splits[pair.second]]:
        examples = shorten(f"{paths[pair.first]} ~ {paths[pair.second]}" for pair in within)
        yield f"{len(within):,} pair(s) of near copies are in the same split: {examples}."
    strangers = sum(patients[pair.first] != patients[pair.second] for pair in certain)
    if table.has_patients and strangers:
        yield f"{strangers:,} pair(s) of near copies are filed under different patients: are the patient ids right?"
    if possible := [pair for pair in near if pair.certainty == "possible"]:
        across = [pair for pair in possible if splits[pair.first] != splits[pair.second]]
        examples = shorten(f"{paths[pair.first]} ~ {paths[pair.second]}" for pair in across or possible)
        yield (
            f"{len(possible):,} pair(s) of images may be near copies, {len(across):,} of them in two splits: "
            f"{examples}. They are not certain: they stop no run and change no split. {SHEET} shows them, audit.json "
            "lists them."
        )


TABLE_CHECKS: tuple[Callable[[SampleTable], Iterable[Leak | str]], ...] = (
    patients_in_two_splits,
    rare_classes,
    *other_targets.TABLE_CHECKS,
)
IMAGE_CHECKS: tuple[Callable[[SampleTable, ImageCache], Iterable[Leak | str]], ...] = (
    same_images,
    exposure.odd_exposure,
    other_targets.boxes_outside,
    other_targets.regions_shown,
)


def _add_results(audit: Audit, results: Iterable[Leak | str]) -> None:
    for item in results:
        if isinstance(item, Leak):
            audit.leaks.append(item)
        else:
            audit.warnings.append(item)
