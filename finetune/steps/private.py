"""What must not leave the place of a run: patients' ids, names of images, and paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.runs.folder import RunFolder

PROVENANCE = {
    "versions": None,
    "commit": None,
    "seed": None,
    "best": None,
    "weights": ("tag", "licence", "sha256", "random", "layout", "preprocessing"),
    "data": ("hash", "kind", "classes", "synthetic"),
}
"""What stays of the provenance in a model file: none of the command, folders, files and notes."""
SHORTEST, SHORTEST_IN_TEXT = 4, 6
"""Characters of an id that is looked for as a whole value, and within a text; shorter ones are found everywhere."""
WORD = re.compile(r"[\w./@:-]+")


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without places and names."""
    kept = {key: provenance[key] for key in PROVENANCE if provenance.get(key) is not None}
    for key, names in PROVENANCE.items():
        if names is not None and isinstance(kept.get(key), Mapping):
            kept[key] = {name: kept[key][name] for name in names if kept[key].get(name) is not None}
    return kept


def without_paths(value: Any) -> Any:
    """The same values, with absolute paths in texts shortened to their last name."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return wording.shortened(value) if isinstance(value, str) else value


def known_ids(run: RunFolder) -> set[str]:
    """Ids of all patients and names of all images of a run.

    Raises:
        FinetuneError: no table of them is left, so that nothing can be compared with it.
    """
    tables = [path for path in (run.samples, *map(run.predictions, run.predicted_splits())) if path.is_file()]
    if not tables:
        raise FinetuneError(
            f"model={run} has neither {run.samples.name} nor predictions: it cannot be checked that no id of a patient "
            "is in the files to upload. Push the whole run folder."
        )
    ids: set[str] = set()
    for path in tables:
        table = pd.read_csv(path, dtype=str, usecols=lambda column: column in ("sample", "patient"))
        ids.update(value for column in table for value in table[column].dropna())
    return {name for value in ids for name in (value, value.rpartition("/")[2]) if len(name) >= SHORTEST}


def check(files: Mapping[str, Any], ids: set[str], allowed: set[str]) -> None:
    """Compare every value and every word of the files with the ids of patients and images.

    Args:
        files: name -> its values, or its text.
        allowed: names of classes, which may be equal to an id.

    Raises:
        FinetuneError: names the file and the place, not the id.
    """
    ids = ids - allowed
    in_text = {name for name in ids if len(name) >= SHORTEST_IN_TEXT and not name.isdigit()}
    for file, content in files.items():
        for place, text in _texts(content):
            if text in ids or not in_text.isdisjoint(word.rstrip(".:") for word in WORD.findall(text)):
                raise FinetuneError(
                    f"{file} holds the id of a patient or the name of an image{place and f', in {place}'}: nothing is "
                    "uploaded. Leave out the metadata column it comes from (evaluation.subgroups), and fit again."
                )


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every key and text."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield place, str(key)
            yield from _texts(item, f"{place}.{key}" if place and len(place) < 60 else place or str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, place)
