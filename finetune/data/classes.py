"""Class names in the cells of a column, and columns that look like something else: numbers, ids, free text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from finetune.errors import FinetuneError, one_of

MAX_NUMBERS = 10  # distinct whole numbers that are read as classes by default: grades 0 to 4, types 1 to 7, digits
MAX_NAMES = 20  # names that are read as classes by default, however few images there are
LABEL_TYPES = ("class",)
UNSUPPORTED_TYPES = ("number", "grade")  # types of targets that nothing learns yet

_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0+")


def class_name(cell: str) -> str:
    """The class that a cell names: a whole number is the same class with and without its decimals, 2.0 and 2; blank for
    a blank cell or nan, which is how a column of numbers looks once it has been through a table with blanks."""
    name = cell.strip()
    if name.lower() == "nan":
        return ""
    return whole[1] if (whole := _WHOLE_NUMBER.fullmatch(name)) else name


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes, numbers by their size."""
    names = sorted(names)
    return sorted(names, key=_number) if all(map(is_number, names)) else names


def is_number(name: str) -> bool:
    """Whether a name is a number, with a decimal point or comma."""
    return _NUMBER.fullmatch(name) is not None


def _number(name: str) -> float:
    return float(name.replace(",", "."))


def doubt(names: Collection[str], images: int) -> str:
    """What distinct names look like, if not like classes; blank if they look like classes."""
    return _as_numbers(names) or _as_texts(names, images)


def _as_numbers(names: Collection[str]) -> str:
    numbers = sorted(_number(name) for name in names if is_number(name))
    decimals = any(value % 1 for value in numbers)
    if len(numbers) <= MAX_NUMBERS and not decimals:
        return ""
    kind = "decimals" if decimals else "whole numbers"
    return f"{len(numbers):,} distinct numbers from {numbers[0]:g} to {numbers[-1]:g} ({kind})"


def _as_texts(names: Collection[str], images: int) -> str:
    if len(names) <= MAX_NAMES or 2 * len(names) <= images:
        return ""
    examples = ", ".join(repr(name[:40]) for name in sorted(names)[:3])
    return f"{len(names):,} distinct texts in {images:,} images, e.g. {examples}"


def check_type(label_type: Any, label: Any) -> None:
    """Refuse a data.label_type that is unknown or not supported yet."""
    if label_type in UNSUPPORTED_TYPES:
        raise FinetuneError(
            f"data.label_type={label_type}: nothing here learns a {label_type} yet, only classes and findings. Sort "
            f"data.label={label} into a few ranges, in a column of names, or type data.label_type=class."
        )
    if label_type is not None and label_type not in LABEL_TYPES:
        raise one_of("data.label_type", label_type, LABEL_TYPES)


def check_classes(label: str, names: Collection[str], images: int, label_type: str | None) -> None:
    """Refuse a column whose cells do not look like names of classes, unless data.label_type=class is set.

    Raises:
        FinetuneError: what the column looks like, and the ways out.
    """
    if label_type == "class":
        return
    if looks := _as_numbers(names):
        raise FinetuneError(
            f"data.label={label} holds {looks}: it looks like a measurement or a grade. Neither is learned yet, only "
            "classes and findings. Sort the numbers into a few ranges, in a column of names such as low and high; or "
            "type data.label_type=class to learn each value as a separate class, without an order."
        )
    if looks := _as_texts(names, images):
        raise FinetuneError(
            f"data.label={label} holds {looks}: it looks like ids or free text. Name another column, or type "
            "data.label_type=class to learn each of them as a class."
        )
