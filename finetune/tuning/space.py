"""The space of a search: named entries of the group `search`, each a range or a list of values for one key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from finetune.errors import FinetuneError, one_of

RANGES = {"log": "log-uniform", "uniform": "uniform", "int": "whole numbers", "log_int": "whole numbers, log-uniform"}
"""Kind of a range -> how it is drawn from."""
KINDS = (*RANGES, "choice")
FIXED = {
    "seed": "the best trials are repeated over seeds: repeats=3",
    "data": "scores on other images cannot be compared",
    "data.seed": "it decides the splits",
    "data.val_fraction": "it decides the splits",
    "data.test_fraction": "it decides the splits",
    "data.fold": "it decides the splits; use -m data.fold=0,1 for a search on each",
    "data.folds": "it decides the splits",
    "trainer.devices": "it is of the machine, not of the model",
    **dict.fromkeys(("job", "task", "experiment", "debug", "search", "logger", "trust"), "it changes what is compared"),
}
"""Keys that cannot be varied, each with the reason."""


class Trial(Protocol):
    """The part of optuna.Trial that draws values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Entry:
    """What one key is drawn from.

    Args:
        key: as typed on the command line: `optimizer.lr`, or the group `loss`.
        kind: one of `KINDS`.
        values: the two bounds of a range, both included; or the values of a choice.
        step: between whole numbers of kind int.

    Raises:
        FinetuneError: bounds or values that make no sense; names the entry.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    step: int = 1

    def __post_init__(self) -> None:
        where = f"search.{self.key}={{{self.kind}: {list(self.values)}}}"
        if self.key in FIXED:
            raise FinetuneError(f"{where}: {self.key} cannot be searched: {FIXED[self.key]}.")
        if self.kind == "choice":
            labels = [label(value) for value in self.values]
            if len(set(labels)) < max(2, len(labels)):
                raise FinetuneError(f"{where} must have two values or more, each once.")
            return
        whole = self.kind in ("int", "log_int")
        if len(self.values) != 2 or not all(is_number(value, whole=whole) for value in self.values):
            raise FinetuneError(f"{where} must be [low, high], two {'whole ' if whole else ''}numbers.")
        low, high = self.values
        if not low < high:
            raise FinetuneError(f"{where}: the first bound must be below the second.")
        if self.kind.startswith("log") and low <= 0:
            raise FinetuneError(f"{where}: a logarithmic range must begin above 0.")
        if not is_number(self.step, whole=True) or self.step < 1 or (self.step != 1 and self.kind != "int"):
            raise FinetuneError(f"{where}: step={self.step} must be a whole number of 1 or more, and is for int alone.")
        if (high - low) % self.step and self.kind == "int":
            raise FinetuneError(f"{where}: step={self.step} does not lead from {low} to {high}.")

    @property
    def is_log(self) -> bool:
        return self.kind.startswith("log")

    def draw(self, trial: Trial) -> Any:
        """A value for `key`, drawn by the sampler of the trial's study."""
        if self.kind == "choice":
            return self.value_of(trial.suggest_categorical(self.key, [label(value) for value in self.values]))
        low, high = self.values
        if self.kind in ("int", "log_int"):
            return trial.suggest_int(self.key, low, high, step=self.step, log=self.is_log)
        return trial.suggest_float(self.key, float(low), float(high), log=self.is_log)

    def value_of(self, parameter: Any) -> Any:
        """The value behind a trial's parameter: of a choice, that of its label."""
        return {label(value): value for value in self.values}[parameter] if self.kind == "choice" else parameter

    def parameter_of(self, value: Any) -> Any:
        """The parameter of a trial with `value`; None where `value` is not within the entry."""
        if self.kind == "choice":
            return label(value) if label(value) in {label(known) for known in self.values} else None
        low, high = self.values
        whole = self.kind in ("int", "log_int")
        if not is_number(value, whole=whole) or not low <= value <= high or (whole and (value - low) % self.step):
            return None
        return value if whole else float(value)

    def describe(self) -> str:
        """`1e-05 to 0.01, log-uniform`, or `bce, focal`."""
        if self.kind == "choice":
            return ", ".join(label(value) for value in self.values)
        step = f", steps of {self.step}" if self.step > 1 else ""
        return f"{shown(self.values[0])} to {shown(self.values[1])}, {RANGES[self.kind]}{step}"


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether `value` is a finite number, and no boolean."""
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def label(value: Any) -> str:
    """A value as text, exactly: what the study stores of a choice."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def shown(value: Any) -> str:
    """A value as text for tables: four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else label(value)


def read(search: Mapping[str, Any]) -> dict[str, Entry]:
    """Key -> entry, from the group `search`; an entry that is null is left out.

    A name may have dots (`optimizer.lr: {...}`) or be nested (`optimizer: {lr: {...}}`), as typed words make it. Of two
    entries of one key the later holds.

    Raises:
        FinetuneError: no entries, an unknown kind, bounds or values that make no sense.
    """
    entries: dict[str, Entry | None] = dict(_entries(search))
    kept = {key: entry for key, entry in entries.items() if entry is not None}
    if not kept:
        raise FinetuneError(
            "search has no entries: nothing to vary. 'search.optimizer.lr={log: [1e-5, 1e-2]}' adds one."
        )
    return kept


def _entries(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Entry | None]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if value is None:
            yield key, None
        elif not isinstance(value, Mapping):
            if prefix:
                raise one_of(f"search.{prefix[:-1]}", name, KINDS)
            raise FinetuneError(f"search.{key}={value} must be a range or a choice: {{log: [1e-5, 1e-2]}}.")
        else:
            kinds = [kind for kind in KINDS if value.get(kind) is not None]
            if len(kinds) > 1:
                raise FinetuneError(f"search.{key} has {' and '.join(kinds)}: name one.")
            for kind in kinds:
                if not isinstance(value[kind], list):
                    raise FinetuneError(f"search.{key}={{{kind}: {value[kind]}}} must be a list in brackets.")
                yield key, Entry(key, kind, tuple(value[kind]), **({"step": value["step"]} if "step" in value else {}))
            yield from _entries({k: v for k, v in value.items() if k not in (*KINDS, "step")}, f"{key}.")


def draw(space: Mapping[str, Entry], trial: Trial) -> dict[str, Any]:
    """A value for each key of the space."""
    return {key: entry.draw(trial) for key, entry in space.items()}


def values_of(space: Mapping[str, Entry], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values behind the stored parameters of a trial."""
    return {key: entry.value_of(parameters[key]) for key, entry in space.items() if key in parameters}
