"""The configurations of a search: that of each trial, checked before the first; the best as an experiment file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune.config import build
from finetune.config.compose import compose, expand, plain
from finetune.config.grammar import decode_keys, grammar
from finetune.config.overrides import choices, parse
from finetune.config.settings import Settings
from finetune.errors import FinetuneError, one_of
from finetune.files import write_text_atomic
from finetune.tuning.space import Entry

SEARCH_KEYS = ("job", "study", "storage", "trials", "startup", "pruner", "warmup", "top", "repeats", "keep_checkpoints")
"""Keys of the job itself, which say nothing of a training."""


class TrialConfigs:
    """The configurations of the trials of a search.

    Args:
        typed: the words of the search, as typed.
        space: what it varies.

    Raises:
        FinetuneError: a word that a file cannot express, or a typed value for a key that is searched.
    """

    def __init__(self, typed: list[str], space: Mapping[str, Entry]):
        words = expand(typed)
        self.words = [word for word in words if not _is_of_search(word)]
        self.search_words = [word for word in words if _is_of_search(word)]
        self.space = space
        for override in parse(self.words):
            if override.is_delete():
                raise FinetuneError(
                    f"{override.input_line!r}: the best configuration is written as a file, which leaves no key out."
                )

    def words_of(self, values: Mapping[str, Any]) -> list[str]:
        """The words of a trial: the typed ones without the searched keys, and `values`."""
        typed = [w for w, override in zip(self.words, parse(self.words), strict=True) if _key(override) not in values]
        groups = choices()
        return [*typed, *(f"{key}={value if key in groups else grammar(value)}" for key, value in values.items())]

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The resolved configuration of a trial.

        Raises:
            FinetuneError: a key or choice that does not exist.
        """
        return plain(compose([*self.words_of(values), *self.search_words]))

    def start(self) -> dict[str, Any]:
        """The values that the typed configuration has for the searched keys, where they are within the space.

        Raises:
            FinetuneError: a searched key that does not exist; names near ones.
        """
        base, groups, values = plain(compose([*self.words, *self.search_words])), choices(), {}
        for key, entry in self.space.items():
            if key in groups:
                if entry.kind != "choice":
                    raise FinetuneError(f"search.{key}: {key} is a group, its entry must be a choice of its files.")
                if wrong := [value for value in entry.values if value not in groups[key]]:
                    raise one_of(f"search.{key}", wrong[0], groups[key])
                same = [value for value in entry.values if self.config({key: value})[key] == base[key]]
                values.update({key: same[0]} if same else {})
                continue
            value = lookup(base, key, entry)
            if entry.parameter_of(value) is not None:
                values[key] = value
        return values

    def check(self) -> dict[str, Any]:
        """Compose and check every value of a choice and both bounds of a range, before anything is read; returns
        `start`, the values of the typed configuration.

        Raises:
            FinetuneError: a key or value that a training refuses; names the entry.
        """
        start = self.start()
        first = {key: start.get(key, entry.values[0]) for key, entry in self.space.items()}
        for key, entry in self.space.items():
            for value in entry.values:
                try:
                    build.check(self.config({**first, key: value}))
                except FinetuneError as error:
                    raise FinetuneError(f"search.{key} with {value}: {error}") from None
        return start

    def settings(self, values: Mapping[str, Any]) -> Settings:
        """The checked settings of a trial."""
        return build.check(self.config(values))

    def write_experiment(self, path: Path, values: Mapping[str, Any], header: list[str]) -> Path:
        """The typed configuration with `values` as an experiment file, opened by `header`."""
        text = "".join(f"# {line}\n" for line in header)
        body = yaml.safe_dump(as_experiment(self.words_of(values)), sort_keys=False, allow_unicode=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text_atomic(path, f"# @package _global_\n{text}{body}")


def _key(override: Any) -> str:
    return str(override.key_or_group)


def _is_of_search(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key in SEARCH_KEYS or key.split(".")[0] in ("search", "hydra") or key.startswith("hydra/")


def lookup(config: Mapping[str, Any], key: str, entry: Entry) -> Any:
    """The value of a dotted key.

    Raises:
        FinetuneError: no such key.
    """
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            known = [str(k) for k in node if not str(k).startswith("_")] if isinstance(node, Mapping) else []
            raise one_of(f"search.{key}={{{entry.kind}: ...}}: the key {key}", name, known)
        node = node[name]
    return node


def as_experiment(words: list[str]) -> dict[str, Any]:
    """Words as the content of an experiment file: groups in its list of defaults, keys as nested mappings."""
    defaults: list[Any] = []
    groups: list[Any] = []
    content: dict[str, Any] = {}
    known = choices()
    for override in parse(words):
        key, value = _key(override), decode_keys(override.value())
        if key == "experiment":
            defaults += value if isinstance(value, list) else [value]
        elif key in known and not isinstance(value, Mapping):
            groups.append({f"override /{key}": value})
        else:
            node = content
            *path, last = key.split(".")
            for name in path:
                node = node.setdefault(name, {})
            node[last] = value
    return {"defaults": [*defaults, "_self_", *groups], **content}
