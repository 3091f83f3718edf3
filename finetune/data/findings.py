"""One name for each finding of a chest X-ray, whatever a data set calls it, so that models and sets match by name.

Names are NIH ChestX-ray14's where it has one; others follow its style (Lung_Opacity). Only synonyms share a
name: Lung_Opacity, Lung_Lesion, Nodule_or_Mass and Enlarged_Cardiomediastinum are no alias of another finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from finetune.errors import FinetuneError, one_of

NO_FINDING = "No Finding"

FINDINGS: dict[str, tuple[str, ...]] = {
    # NIH ChestX-ray14 (Wang et al., 2017), in the paper's order
    "Atelectasis": (),
    "Cardiomegaly": (),
    "Effusion": ("Pleural Effusion",),  # CheXpert, MIMIC-CXR, VinDr-CXR, PadChest
    "Infiltration": ("Infiltrates", "Infiltrate"),  # PadChest, the boxes of NIH
    "Mass": ("Pulmonary Mass", "Lung Mass"),  # PadChest
    "Nodule": ("Pulmonary Nodule", "Lung Nodule"),
    "Pneumonia": (),
    "Pneumothorax": (),
    "Consolidation": (),
    "Edema": ("Pulmonary Edema",),  # PadChest
    "Emphysema": (),
    "Fibrosis": ("Pulmonary Fibrosis",),  # VinDr-CXR, PadChest
    "Pleural_Thickening": (),
    "Hernia": (),
    NO_FINDING: (),
    # CheXpert and MIMIC-CXR-JPG (Irvin et al., 2019)
    "Enlarged_Cardiomediastinum": (),
    "Lung_Opacity": (),
    "Lung_Lesion": (),
    "Pleural_Other": (),
    "Fracture": (),
    "Support_Devices": (),
    # VinDr-CXR (Nguyen et al., 2022)
    "Aortic_Enlargement": (),
    "Calcification": (),
    "Clavicle_Fracture": (),
    "Rib_Fracture": (),
    "Enlarged_PA": (),
    "ILD": ("Interstitial Lung Disease",),
    "Lung_Cavity": (),
    "Lung_Cyst": (),
    "Lung_Tumor": (),
    "Mediastinal_Shift": (),
    "Nodule_or_Mass": ("Nodule/Mass",),
    "Other_Lesion": (),
    "Other_Disease": ("Other Diseases",),  # so in the table of train, Other disease in that of test
    "COPD": (),
    "Tuberculosis": (),
    # PadChest (Bustos et al., 2020)
    "Hiatal_Hernia": (),
    "Normal": (),
}
"""Name -> other names of the same; spaces, underscores and capitals make no difference."""


def canonical(name: str) -> str:
    """The name that all sets share; a name that is not in the vocabulary stays as it is."""
    return _NAMES.get(_key(name), name)


def same_finding(a: str, b: str) -> bool:
    """Whether two names mean the same finding."""
    return _key(canonical(a)) == _key(canonical(b))


def select_findings(
    requested: Sequence[str] | str | None, known: Sequence[str], default: Iterable[str] | None = None
) -> list[str]:
    """data.findings in the spelling of the data set: all (or `default`) where it is null.

    Raises:
        FinetuneError: a finding that the set does not know, none, or one twice.
    """
    if requested is None:
        return list(known if default is None else default)
    names = []
    for finding in [requested] if isinstance(requested, str) else requested:
        name = next((n for n in known if same_finding(n, str(finding))), None)
        if name is None:
            raise one_of("data.findings", finding, known)
        names.append(name)
    if not names or len(set(names)) < len(names):
        raise FinetuneError(f"data.findings={requested} must name at least one finding, each once.")
    return names


def check_one_truth(columns: Iterable[object], listing: str, findings: Iterable[str], file: object) -> None:
    """Refuse a table that has a column of a finding's own name beside `listing`, the column that lists all findings.

    Raises:
        FinetuneError: naming both columns.
    """
    named = list(findings)
    for column in map(str, columns):
        if finding := next((name for name in named if same_finding(column, name)), None):
            raise FinetuneError(
                f"{file} has a column {listing!r} and a column {column!r}: which of them is the truth about {finding} "
                "is not clear. Remove or rename one of them."
            )


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


_NAMES = {_key(alias): name for name, others in FINDINGS.items() for alias in (name, *others)}
