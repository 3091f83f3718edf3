"""Patients by the headers of DICOM files: for sources without a patient column, and to verify one."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune.data.decoding import containers, dicom
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.listing import shorten

NOBODY = ("anonymous", "anonymized", "anonymised", "anon", "unknown", "none", "null", "n/a", "na", "0", "removed")
"""Placeholders for a removed PatientID."""
THREADS = 16  # a header takes 0.3 ms of work, and on a network disk much more waiting


def header_patients(root: Path, paths: Sequence[str]) -> list[str]:
    """The PatientID of each image, blank if it is no DICOM file or its header has none."""
    files = [_dicom_file(path) for path in paths]
    unique_files = sorted({file for file in files if file})
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
        warnings.filterwarnings("ignore", module="pydicom")  # of broken headers, without the file's name
        ids = dict(
            zip(unique_files, threads.map(lambda file: dicom.read_patient(root / file), unique_files), strict=True)
        )
    return ["" if (patient := ids.get(file, "")).lower() in NOBODY else patient for file in files]


def patients_by_header(root: Path, paths: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Each image's patient by the headers of DICOM files, and notes; None if no header has one.

    An image without a PatientID, of any format, counts as a separate patient. A PatientID that all headers share is
    taken for a placeholder, and ignored.
    """
    named = header_patients(root, paths)
    count = sum(bool(name) for name in named)
    if not count:
        return None, []
    if len(set(named) - {""}) == 1 and count > 1:
        return None, [f"All {count:,} DICOM headers with a PatientID hold the same one: it identifies no patient."]
    notes = ["Patients are the PatientID of the DICOM headers; like a patient column, it is written into the run."]
    if lacking := len(paths) - count:
        notes.append(f"{lacking:,} images have no PatientID in a DICOM header; each counts as a separate patient.")
    return [name or path for name, path in zip(named, paths, strict=True)], notes


def contradictions(root: Path, paths: Sequence[str], patients: Sequence[str], column: str) -> list[str]:
    """A note on patients of a table that share a PatientID in the headers of their DICOM files, or none.

    A patient of the table with several PatientIDs is harmless: all images stay together.
    """
    patients_of_id: defaultdict[str, set[str]] = defaultdict(set)
    for name, patient in zip(header_patients(root, paths), patients, strict=True):
        patients_of_id[name].add(patient)
    patients_of_id.pop("", None)
    shared = sorted(sorted(group) for group in patients_of_id.values() if len(group) > 1)
    if not shared or len(patients_of_id) == 1:
        return []
    return [
        f"{len(shared):,} PatientID(s) of the DICOM headers belong to several patients of data.patient={column}, the "
        f"first to {shorten(shared[0])}: images of one person may be in two splits."
    ]


def _dicom_file(path: str) -> str:
    """The file of an image that may be DICOM, by its suffix or the lack of another known one; else blank."""
    member = containers.member(path)
    if member is not None:
        return member.file.as_posix() if member.is_frame else ""
    suffix = os.path.splitext(path)[1].lower()
    return path if suffix in dicom.SUFFIXES or suffix not in IMAGE_SUFFIXES else ""
