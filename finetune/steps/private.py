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
        if names is not None and key in kept:
            node = kept.pop(key)
            if isinstance(node, Mapping):
                kept[key] = {name: node[name] for name in names if node.get(name) is not None}
    return kept


def without_paths(value: Any) -> Any:
    """The same values, with absolute paths in texts shortened to their last name."""
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
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
    names = {name for value in ids for name in (value, value.rpartition("/")[2])}
    return {name for name in (*names, *(name.rpartition(".")[0] for name in names)) if len(name) >= SHORTEST}


def check(files: Mapping[str, Any], ids: set[str], allowed: set[str]) -> None:
    """Compare every value and every word of the files with the ids of patients and images.

    Args:
        files: name -> its values, or its text.
        allowed: names of classes, which may be equal to an id.

    Raises:
        FinetuneError: names the file and the place, not the id.
    """
    ids = ids - allowed
    in_text = {name.casefold() for name in ids if len(name) >= SHORTEST_IN_TEXT and not name.isdigit()}
    odd = [name for name in in_text if not WORD.fullmatch(name)]  # with spaces, ^ or commas
    for file, content in files.items():
        for place, text in _texts(content):
            plain = text.replace("\\", "").casefold()  # Markdown escapes with backslashes
            if text in ids or _holds(plain, in_text, odd):
                raise FinetuneError(
                    f"{file} holds the id of a patient or the name of an image{place and f', in {place}'}: nothing is "
                    "uploaded. Leave out the metadata column it comes from (evaluation.subgroups), and fit again."
                )


def _holds(text: str, names: set[str], odd: list[str]) -> bool:
    """Whether one of the names is a word of the text, or one of the odd ones in it with no letter or digit beside."""
    if not names.isdisjoint(word.rstrip(".:") for word in WORD.findall(text)):
        return True
    return any(name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in odd)


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
