"""Finished runs for a comparison, grouped into seeds of one setting and folds of one table."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.evaluation.answers import CLASSIFY, Candidate, answers_named, comparable, task_name
from finetune.files import resume_word
from finetune.runs.folder import RunFolder, runs_in

IGNORED_KEYS = (
    "evaluation",
    "logger",
    "trust",
    "data.num_workers",
    "data.cache",
    "data.reference",
    "trainer.enable_progress_bar",
)
"""Settings, and whole groups of them, that change no prediction."""
SEED, FOLD = "seed", "data.fold"
MAX_NAMED = 5  # unfinished runs in a sentence


@dataclass
class FinishedRun:
    """The parts of a run folder that a comparison reads."""

    path: Path
    settings: dict[str, str]
    """Dotted name -> value as text, without those that change no prediction."""
    predictions: Any
    """The table of its task."""
    typed: list[str] = field(default_factory=list)
    """The words typed for it."""
    task: str = CLASSIFY
    """Name of its task."""

    @property
    def seed(self) -> str:
        return self.settings.get(SEED, "")

    @property
    def fold(self) -> int | None:
        value = self.settings.get(FOLD, "null")
        return None if value == "null" else int(value)

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The settings that seeds or folds of one setting share."""
        return tuple(sorted((key, value) for key, value in self.settings.items() if key not in (SEED, FOLD)))


@dataclass
class Folds:
    """The test splits of one table's folds, pooled: each image predicted by a network that was not trained on it."""

    label: str
    seed: str
    pooled: Any
    """Their predictions in a table of the task."""
    folds: dict[int, Any] = field(default_factory=dict)
    """Those of each fold."""
    task: str = CLASSIFY


def find(named: str | Path | Sequence[str | Path]) -> list[Path]:
    """Run folders behind `runs=`: those named, and for a folder of runs those in it that are finished.

    Raises:
        FinetuneError: no such folder, nothing finished in it, or a run that was named itself has not finished.
    """
    folders: list[Path] = []
    for path, inside in _named(named):
        done = [run for run in inside if RunFolder(run).is_finished()]
        if not inside:
            raise FinetuneError(f"runs={path} holds no run: there is no config.yaml in it or one level below.")
        if not done and inside == [path]:
            why = RunFolder(path).why_unfinished()
            raise FinetuneError(f"{path} is not finished: {why}. Continue it by {resume_word(path)}.")
        if not done:
            raise FinetuneError(f"runs={path} holds no finished run. Continue one by {resume_word(inside[-1])}.")
        folders += [run for run in done if run.resolve() not in {other.resolve() for other in folders}]
    return folders


def unfinished(named: str | Path | Sequence[str | Path]) -> list[str]:
    """A sentence on the runs behind `runs=` that `find` leaves out, if any."""
    skipped = [run for _, inside in _named(named) for run in inside if not RunFolder(run).is_finished()]
    listed = ", ".join(map(str, skipped[:MAX_NAMED])) + (", ..." if len(skipped) > MAX_NAMED else "")
    sentence = f"{len(skipped)} unfinished run{'' if len(skipped) == 1 else 's'} left out (no scores.json): {listed}."
    return [sentence] if skipped else []


def _named(named: str | Path | Sequence[str | Path]) -> list[tuple[Path, list[Path]]]:
    """Each folder behind `runs=` with the runs in it; a run folder contains itself."""
    folders = []
    for path in map(Path, map(str, [named] if isinstance(named, str | Path) else named)):
        if not path.is_dir():
            raise FinetuneError(f"runs={path} is not a folder. Name run folders, or a folder of them (a multirun's).")
        inside = [path]
        if not RunFolder(path).config.is_file():
            inside = sorted((run.path for run in runs_in(path)), key=lambda p: numbered(p.name))
        folders.append((path, inside))
    return folders


def numbered(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2_seed_9 before 10_seed_0: numbers by their size, the rest as text."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read(path: Path, split: str) -> FinishedRun:
    """A finished run's settings and predictions of `split` (an evaluation's: of the split it was of)."""
    run = RunFolder(path)
    config = run.read_config()
    if config.get("job") == "evaluate":
        split = str(config.get("split") or split)
    table = run.predictions(split)
    if not table.is_file():
        have = ", ".join(run.predicted_splits()) or "none"
        raise FinetuneError(f"{path} has no predictions of split={split}. It has {have}.")
    scores = json.loads(run.scores.read_text(encoding="utf-8"))
    predictions = answers_named(task_name(config)).read_table(table, scores.get(split) or {})
    return FinishedRun(path, flat(config), predictions, words(run), task_name(config))


def words(run: RunFolder) -> list[str]:
    """The words typed after `python -m finetune`, from environment.json if it has them."""
    try:
        return shlex.split(run.read_environment()["command"])[3:]
    except (FinetuneError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and values as text."""
    values: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if any(name == ignored or name.startswith(f"{ignored}.") for ignored in IGNORED_KEYS) or name == "hydra":
            continue
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{name}.")
        else:
            values[name] = value if isinstance(value, str) else json.dumps(value)
    return values


def group_runs(runs: Sequence[FinishedRun]) -> tuple[list[Candidate], list[Folds], list[str]]:
    """Candidates in the order of their first run, the folds among them, and sentences for the user.

    Raises:
        FinetuneError: folds that overlap, or the same setting, seed and fold twice.
    """
    settings: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run)
    labels = named(list(settings.values()))
    candidates, collected, sentences = [], [], []
    for label, members_of_setting in zip(labels, settings.values(), strict=True):
        by_seed: dict[str, list[FinishedRun]] = {}
        for run in members_of_setting:
            by_seed.setdefault(run.seed, []).append(run)
        members = []
        for seed, runs_of_seed in by_seed.items():
            if (
                len(runs_of_seed) == 1
                and len(members_of_setting) == len(by_seed)
                and len({run.fold for run in members_of_setting}) == 1
            ):
                members.append(runs_of_seed[0].predictions)
                continue
            folds = pool_folds(label, seed, runs_of_seed)
            collected.append(folds)
            members.append(folds.pooled)
            n_folds = int(runs_of_seed[0].settings.get("data.folds", len(runs_of_seed)))
            if lacking := sorted(set(range(n_folds)) - set(folds.folds)):
                sentences.append(
                    f"{label}, seed {seed}: fold(s) {', '.join(map(str, lacking))} of {n_folds} are missing."
                )
        candidates.append(Candidate(label, members, list(by_seed)))
    return candidates, collected, sentences


def pool_folds(label: str, seed: str, runs: Sequence[FinishedRun]) -> Folds:
    """The folds of one table, each sample once."""
    folds: dict[int, Any] = {}
    for run in runs:
        if run.fold is None or run.fold in folds:
            twin = next(other for other in runs if other is not run and run.fold in (None, other.fold))
            what = "the same settings and seed" if run.fold is None else f"the same settings, seed and fold {run.fold}"
            raise FinetuneError(f"{run.path} and {twin.path} have {what}: leave one out.")
        folds[run.fold] = run.predictions
    folds, task = dict(sorted(folds.items())), runs[0].task
    try:
        pooled = comparable(task).pool(folds)
    except FinetuneError as error:
        raise FinetuneError(f"The folds of {label} cannot be put together: {error}.") from None
    samples = pooled.frame["sample"]
    if (twice := samples.duplicated()).any():
        raise FinetuneError(
            f"The folds of {label} cannot be put together: {samples[twice].iloc[0]} is in two of their "
            "test splits. Folds share out one table only with the same data.seed and data.folds."
        )
    return Folds(label, seed, pooled, folds, task)


def named(settings: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """A short name for each group of runs: the settings in which they differ, else their folder."""
    all_settings = [dict(runs[0].setting) for runs in settings]
    keys = sorted(
        {key for values in all_settings for key in values if len({others.get(key) for others in all_settings}) > 1}
    )
    replaced = replaced_groups(all_settings, keys)
    keys = [
        *replaced,
        *(key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in replaced)),
    ]
    keys.sort(key=lambda key: (not key.endswith(".name"), key.rpartition(".")[2].startswith("_"), key.count(".")))
    labels = []
    for values, runs in zip(all_settings, settings, strict=True):
        parts = []
        for key in keys[:3]:
            if key in replaced:
                parts.append(group_label(key, values, runs[0].typed))
            elif key in values:
                parts.append(f"{key.removesuffix('.name')}={values[key]}")
        labels.append(", ".join(parts) or runs[0].path.name)
    repeated = [label for label in labels if labels.count(label) > 1]
    return [
        f"{label} ({runs[0].path.name})" if label in repeated else label
        for label, runs in zip(labels, settings, strict=True)
    ]


def replaced_groups(all_settings: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """Config groups shown as one setting because their contents differ entirely between runs: empty in one and a
    mapping in another, or mappings of different classes. Of nested groups the outer one."""
    groups: list[str] = []
    for key in differing:  # sorted, so that outer names come first
        name = key.removesuffix("._target_")
        torn = any(another.startswith(f"{name}.") for another in differing) and any(
            values.get(name) in ("{}", "null") or f"{name}._target_" in differing for values in all_settings
        )
        if torn and f"{name}.name" not in differing and not any(name.startswith(f"{outer}.") for outer in groups):
            groups.append(name)
    return list(dict.fromkeys(groups))


def group_label(name: str, settings: Mapping[str, str], typed: Sequence[str]) -> str:
    """`transforms=light` and its other typed keys; else `(none)`, or the class of its content."""
    typed_words = {word.lstrip("+~").partition("=")[0]: word for word in typed}
    inner = [word for key, word in typed_words.items() if key.startswith(f"{name}.")]
    if name in typed_words and "," not in typed_words[name]:  # a sweep's `a,b` is ambiguous
        return ", ".join([typed_words[name], *inner])
    empty = settings.get(name) in ("{}", "null")
    content = "none" if empty else settings.get(f"{name}._target_", "set").rpartition(".")[2]
    return ", ".join([f"{name}=({content})", *inner])


def differing(runs: Sequence[FinishedRun]) -> list[str]:
    """Data settings that differ between the runs: possible reasons for different samples."""
    keys = {key for run in runs for key in run.settings if key.startswith("data.")}
    values = {key: list(dict.fromkeys(run.settings.get(key, "unset") for run in runs)) for key in sorted(keys)}
    return [f"{key}={' and '.join(texts[:3])}" for key, texts in values.items() if len(texts) > 1 and key != FOLD]
