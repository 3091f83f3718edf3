"""What of an image a data set has: its classes, masks or boxes, as its source declares in `targets`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import yaml

from finetune.config.allowed import target as source_named
from finetune.config.overrides import choices, config_dirs
from finetune.errors import FinetuneError

CLASS_ALONE = ("class",)
NOUNS = {"class": "classes", "mask": "masks", "boxes": "boxes"}
"""data.target -> the same in words."""


def targets_of(source: Callable[..., Any]) -> tuple[str, ...] | None:
    """The values of data.target that a source has; None where it takes the setting and declares no `targets`."""
    if "target" not in inspect.signature(source).parameters:
        return CLASS_ALONE
    declared = getattr(source, "targets", None)
    return None if declared is None else tuple(declared)


def check(wanted: str, source: Callable[..., Any], name: str, trust: list[str]) -> None:
    """Refuse a data.target that the data set `name` does not have.

    Raises:
        FinetuneError: naming what it has, and the data sets that have what is wanted.
    """
    declared = targets_of(source)
    if declared is None or wanted in declared:
        return
    has = " and ".join(NOUNS.get(other, other) for other in declared)
    alone = " only" if len(declared) == 1 else ""
    raise FinetuneError(f"data.target={wanted}: data={name} gives {has}{alone}. {ways_out(wanted, trust)}")


def ways_out(wanted: str, trust: list[str]) -> str:
    """Which data sets have what is wanted, as a sentence."""
    shown = ", ".join(f"data={name}" for name in sets_with(wanted, trust))
    return f"{NOUNS.get(wanted, wanted).capitalize()} are in {shown} (docs/dense_data.md)."


def sets_with(wanted: str, trust: list[str]) -> list[str]:
    """Names of the data sets whose source has that target, in alphabetical order."""
    names = []
    for name in choices()["data"]:
        files = [folder / "data" / f"{name}.yaml" for folder in config_dirs()]
        node = yaml.safe_load(next(file for file in files if file.is_file()).read_text(encoding="utf-8")) or {}
        place = (node.get("source") or {}).get("_target_")
        try:
            source = source_named(str(place), trust, "data.source._target_") if place else None
        except FinetuneError:  # of the user, and not trusted
            continue
        if source is not None and wanted in (targets_of(source) or ()):
            names.append(name)
    return names
