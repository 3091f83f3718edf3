"""The classes of a model beside those of a data set: which mean the same, by their names or because `data.map` says so.

A class of the model matches the class of the data set with exactly its name. Synonyms of findings (Effusion, Pleural
Effusion) match too, with a note. Anything else, even a name that differs only in capitals, is proposed in the error and
never matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.data.findings import same_finding
from finetune.data.table import SampleTable
from finetune.data.targets import types_in_words
from finetune.errors import FinetuneError, one_of

MIN_SHORT_FORM = 3  # letters of an abbreviation that is proposed for a longer name: mel, melanoma


@dataclass(frozen=True)
class Matched:
    """The classes of a data set that correspond to those of a model."""

    classes: dict[str, list[str]]
    """Class of the model -> matching classes of the data set, in the model's order; unmatched ones are left out."""
    notes: list[str] = field(default_factory=list)
    """Sentences on matches under another name."""


def read_map(mapping: Any, classes: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """What `data.map` says: class of the model -> one class of the data set, or several that all mean it.

    Raises:
        FinetuneError: a class that the model, or the data set, does not have; or one of the data set's twice.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise FinetuneError(f"data.map={mapping} must say which class of the model is which of the data set: {{A: B}}.")
    read = {
        str(name): [str(item) for item in (value if isinstance(value, list) else [value])]
        for name, value in (mapping or {}).items()
    }
    for name, values in read.items():
        if name not in classes:
            if name in known and all(value in classes for value in values):
                raise FinetuneError(
                    f"data.map={in_braces(read)} is the wrong way round: it says {{class of the model: class of the "
                    f"data set}}, so 'data.map={in_braces({values[0]: [name]})}'."
                )
            raise one_of("data.map", name, classes)
        for value in values:
            if value not in known:
                raise one_of(f"data.map.{name}", value, known)
    every = [value for values in read.values() for value in values]
    if twice := sorted({value for value in every if every.count(value) > 1}):
        raise FinetuneError(f"data.map={in_braces(read)} gives {twice[0]} to two classes of the model.")
    return read


def match(
    classes: Sequence[str], kind: str, known: Sequence[str], known_kind: str, mapping: Mapping[str, list[str]]
) -> Matched:
    """The classes of a model (of `kind`) with those that a data set (of `known_kind`) knows.

    Raises:
        FinetuneError: none in common, or classes of a multiclass data set that no class of a multiclass model means.
    """
    matches = dict(mapping)
    taken = {value for values in matches.values() for value in values}
    for name in classes:
        if name in known and name not in matches and name not in taken:
            matches[name] = [name]
            taken.add(name)
    if kind == known_kind == "multilabel":
        free = [value for value in known if value not in taken]
        for value in free:
            alike = [name for name in classes if same_finding(name, value) and name not in matches]
            if len(alike) == 1:
                matches[alike[0]] = [value]
    notes = [
        f"{name} is the data set's {' or '.join(values)}."
        for name, values in matches.items()
        if values != [name] and name not in mapping
    ]
    taken = {value for values in matches.values() for value in values}
    left = [value for value in known if value not in taken]
    if not matches or (kind == known_kind == "multiclass" and left):
        raise _apart(
            classes, kind, known, known_kind, left if matches else list(known), [n for n in classes if n not in matches]
        )
    return Matched({name: matches[name] for name in classes if name in matches}, notes)


def to_model_classes(table: SampleTable, classes: Sequence[str], kind: str, data_map: Any = None) -> SampleTable:
    """The table in a model's classes: those that it does not label are unknown, not negative.

    A multiclass model on findings keeps the classes that match, as findings: each is scored by its own probability.
    For a multilabel model on classes, an image is positive for the finding of its class, and negative for the findings
    of other classes.

    Raises:
        FinetuneError: as in `read_map` and `match`.
    """
    if not table.classes:
        raise FinetuneError(
            f"The model answers with classes ({', '.join(classes)}), table {table.name} has none, only "
            f"{types_in_words(table.other_targets)}."
        )
    mapping = read_map(data_map, classes, table.classes)
    matched = match(classes, kind, table.classes, table.kind, mapping)
    notes = list(matched.notes)
    pairs = ", ".join(f"{name} against {' or '.join(values)}" for name, values in matched.classes.items())
    if kind != table.kind and kind == "multiclass":
        notes.append(f"The data set labels findings: each probability of the model is scored separately, {pairs}.")
    elif kind != table.kind:
        notes.append(f"Findings are read from the class of an image, which has no others: {pairs}.")
    elif mapping:
        notes.append(f"As data.map says: {pairs}.")
    scored_classes = list(matched.classes) if (kind, table.kind) == ("multiclass", "multilabel") else list(classes)
    absent: float | np.ndarray = np.nan
    if kind == table.kind == "multiclass":
        unknown = table.frame[[f"target_{name}" for name in table.classes]].isna().any(axis=1).to_numpy()
        absent = np.where(unknown, np.nan, 0.0)
    targets = {
        f"target_{name}": _any(table, matched.classes[name]) if name in matched.classes else absent
        for name in scored_classes
    }
    frame = table.frame.drop(columns=table.target_columns).assign(**targets)
    new_kind = "multilabel" if "multilabel" in (kind, table.kind) else "multiclass"
    return replace(
        table,
        frame=frame,
        classes=scored_classes,
        kind=new_kind,
        notes=[*table.notes, *notes],
        other_targets={},
        regions=None,
    )


def _any(table: SampleTable, names: list[str]) -> np.ndarray:  # -> (N,)
    """Whether an image has any of these: 1 where one is positive, else unknown unless all are known."""
    values = table.frame[[f"target_{name}" for name in names]].to_numpy(np.float64)
    if table.kind == "multiclass":
        return values.sum(axis=1)
    largest = np.where(np.isnan(values), -np.inf, values).max(axis=1)
    return np.where(np.isnan(values).any(axis=1) & (largest < 1), np.nan, largest)


def proposals(classes: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Pairs that probably mean the same: equal up to capitals and signs, synonyms, or an abbreviation."""

    def key(name: str) -> str:
        return "".join(letter for letter in name.casefold() if letter.isalnum())

    proposed: dict[str, list[str]] = {}
    free = list(known)
    for alike in (
        lambda a, b: same_finding(a, b) or key(a) == key(b),
        lambda a, b: (
            min(len(key(a)), len(key(b))) >= MIN_SHORT_FORM and (key(a).startswith(key(b)) or key(b).startswith(key(a)))
        ),
    ):
        for name in classes:
            near = [value for value in free if alike(name, value)]
            if name not in proposed and len(near) == 1:
                proposed[name] = near
                free.remove(near[0])
    return proposed


def in_braces(mapping: Mapping[str, Sequence[str]]) -> str:
    """{PNEUMONIA: Pneumonia}, as typed on the command line."""
    parts = [f"{n}: {v[0] if len(v) == 1 else '[' + ', '.join(v) + ']'}" for n, v in mapping.items()]
    return "{" + ", ".join(parts) + "}"


def _apart(
    classes: Sequence[str], kind: str, known: Sequence[str], known_kind: str, left: list[str], free: list[str]
) -> FinetuneError:
    """The error for classes that do not match, and what to type: `left` are the data set's, `free` the model's."""
    what = {"multiclass": "one of the classes", "multilabel": "findings"}
    sentences = [
        f"The model answers with {what[kind]} {', '.join(classes)} ({kind}), the data set labels {what[known_kind]} "
        f"{', '.join(known)} ({known_kind}):"
    ]
    partly = len(left) < len(known)
    without_match = f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} no class of the model."
    sentences.append(without_match if partly else "no class has the same name.")
    proposed = proposals(free, left)
    if proposed:
        does = {
            ("multiclass", "multilabel"): "scores the probability of the one against the other",
            ("multilabel", "multiclass"): "reads the findings from the classes",
        }.get((kind, known_kind), "takes them for the same")
        sentences.append(f"'data.map={in_braces(proposed)}' {does}.")
    elif not partly:
        sentences.append(
            f"'data.map={in_braces({free[0]: left[:1]})}' would say that {free[0]} is the data set's {left[0]}."
        )
    remaining = [value for value in left if [value] not in proposed.values()]
    if partly and remaining:
        joined = {classes[0]: [classes[0], remaining[0]]}
        sentences.append(
            f"'data.map={in_braces(joined)}' would take {remaining[0]} for {classes[0]} as well; or leave its rows "
            "out of the table."
        )
    return FinetuneError(" ".join(sentences))
