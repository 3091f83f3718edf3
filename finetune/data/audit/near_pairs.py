"""Pairs of near copies as a person sees them: listed in audit.json, side by side in near_copies.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.audit.contact_sheet import write_sheet
from finetune.data.audit.near_duplicates import Images, Pair
from finetune.data.table import SampleTable

SHEET = "near_copies.png"
MAX_PAIRS = 16  # pairs in it
LISTED = 10_000  # pairs in audit.json


def in_order(table: SampleTable, near: Sequence[Pair]) -> list[Pair]:
    """Pairs in two splits before those within one, and certain ones before possible ones."""
    splits = table.frame["split"].to_numpy(object)
    return sorted(near, key=lambda pair: (splits[pair.first] == splits[pair.second], pair.certainty != "certain"))


def records(table: SampleTable, near: Sequence[Pair]) -> list[dict[str, Any]]:
    """For audit.json; what is beyond LISTED pairs is left out."""
    paths, splits = (table.frame[column].to_numpy(object) for column in ("path", "split"))
    return [
        {
            "paths": [paths[pair.first], paths[pair.second]],
            "splits": [splits[pair.first], splits[pair.second]],
            "alike": pair.alike,
            "detail": pair.detail,
            "certainty": pair.certainty,
        }
        for pair in in_order(table, near)[:LISTED]
    ]


def draw(table: SampleTable, images: Images, near: Sequence[Pair], path: Path) -> Path:
    """The first pairs side by side, with certainty, split and file name under each image."""
    splits = table.frame["split"].to_numpy(object)
    rows, captions = [], []
    for pair in in_order(table, near)[:MAX_PAIRS]:
        for row in (pair.first, pair.second):
            rows.append(row)
            captions.append(f"{pair.certainty} copy, {splits[row]}\n{Path(table.paths[row]).name}")
    return write_sheet(path, [images[row] for row in rows], captions, columns=4)
