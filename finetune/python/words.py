"""Arguments of Python functions -> words of the command line, which are composed and checked as typed ones are."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.config.compose import compose
from finetune.config.grammar import decode_keys, grammar, quoted
from finetune.config.overrides import FREE_KEYS, add_force_prefix, choices, config_dirs, leaf_keys, parse
from finetune.config.settings import JOBS
from finetune.errors import FinetuneError

SHORT = {
    **{
        name: f"data.{name}"
        for name in (
            "table", "root", "label", "patient", "split", "path", "metadata", "findings", "target", "fold",
            "image_size", "batch_size", "num_workers",
        )
    },
    **{name: f"trainer.{name}" for name in ("devices", "accelerator", "precision")},
    "epochs": "trainer.max_epochs",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "weights": "backbone.weights",
    "in_channels": "backbone.in_channels",
    "folder": "hydra.run.dir",
}  # fmt: skip
"""Short word -> key of the configuration."""
OF_TABLE_OF_LABELS = ("label", "patient")
"""Keys of job=evaluate itself that go with labels=FILE; without it they are those of the data."""
OTHER_NAMES = {
    "learning_rate": "lr", "max_epochs": "epochs", "num_epochs": "epochs", "model": "backbone", "arch": "backbone",
    "size": "image_size", "workers": "num_workers", "output_dir": "folder", "output": "folder", "run_dir": "folder",
    "pretrained": "weights", "gpus": "devices", "scheduler": "schedule", "augmentation": "transforms",
    "plan": "finetuning", "criterion": "loss", "random_state": "seed", "target_column": "label",
}  # fmt: skip
"""What other libraries call a word -> the word, for hints."""
SIMPLE = re.compile(r"[\w./][\w./-]*", re.ASCII)
"""A text that is read without quotes, unless it is a number, true, false or null."""
ID = re.compile(r"[A-Za-z_]\w*")
"""A key of a mapping that Hydra's grammar reads as it is."""
READ_AS_VALUES = ("null", "true", "false", "inf", "nan")


class Unset:
    """The default of an argument that is not given, where None is a value."""

    def __repr__(self) -> str:
        return "unset"


UNSET: Any = Unset()


def words_of(job: str, arguments: Mapping[str, Any]) -> list[str]:
    """The words of a job.

    Args:
        arguments: short words, groups, keys of the configuration with dots (`optimizer.lr`) or double underscores
            (`optimizer__lr`), and their values; an UNSET one is left out.

    Raises:
        FinetuneError: a name that is none of them, with the nearest; one given twice; or a value that no configuration
            holds.
    """
    given = {name: value for name, value in arguments.items() if value is not UNSET}
    groups = choices()
    names: dict[str, str] = {}
    words = [] if job == "fit" else [f"job={job}"]
    for name, value in given.items():
        key = key_of(name, job, given, groups)
        if key in names:
            raise FinetuneError(f"{name}={value!r}: {names[key]} sets {key} already. Give one of them.")
        names[key] = name
        words.append(word(key, plain(name, value), groups))
    return words


def key_of(name: str, job: str, given: Mapping[str, Any], groups: Mapping[str, Any]) -> str:
    """The key of the configuration that a name means.

    Raises:
        FinetuneError: there is none; names the nearest.
    """
    if "." in name or "__" in name or "/" in name:
        return name.replace("__", ".")
    settings = JOBS[job].model_fields
    own = name in settings and not (name in OF_TABLE_OF_LABELS and not {"labels", "predictions"} & set(given))
    if name == "job":
        raise FinetuneError(f"job={given[name]}: each job is a function, such as finetune.{given[name]}.")
    if own or name in groups or name == "config":
        return name
    if name in SHORT:
        return SHORT[name]
    raise unknown(name, given[name], job, groups)


def unknown(name: str, value: Any, job: str, groups: Mapping[str, Any]) -> FinetuneError:
    """The error for a name that means nothing: the nearest ones."""
    own = [key for key in JOBS[job].model_fields if key not in ("resolved", "job", "demo", "debug_run")]
    known = dict.fromkeys([*SHORT, *own, *(group for group in groups if group not in ("job", "search"))])
    similar = difflib.get_close_matches(name, [*known, *OTHER_NAMES], n=2, cutoff=0.75)
    near = list(dict.fromkeys(OTHER_NAMES.get(close, close) for close in similar)) or _keys_called(name)
    near = near or difflib.get_close_matches(name, known, n=2)
    hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
    return FinetuneError(
        f"{name}={value!r}: there is no such word.{hint} Short ones: {', '.join(sorted(SHORT))}. Groups: "
        f"{', '.join(key for key in known if key in groups)}. Any other key has its group: optimizer__lr=1e-3."
    )


def _keys_called(name: str) -> list[str]:
    """Keys of the configuration, or of a choice of a group, whose last part is `name`."""
    keys = [key for key in leaf_keys(compose([])) if key.rpartition(".")[2] == name]
    files = (file for folder in config_dirs() for file in sorted(folder.glob("*/*.yaml")))
    keys += [f"{f.parent.name}.{name}" for f in files if name in (yaml.safe_load(f.read_text(encoding="utf-8")) or {})]
    return list(dict.fromkeys(key.replace(".", "__") for key in keys if "." in key))


def word(key: str, value: Any, groups: Mapping[str, Sequence[str]]) -> str:
    """`key=value`, quoted so that the value arrives as it is; None of a group is its choice `none`.

    Raises:
        FinetuneError: a group with something else than a choice, or a mapping with keys that cannot be written.
    """
    if key in groups:
        chosen = "none" if value is None and "none" in groups[key] else value
        if isinstance(chosen, str):
            return f"{key}={_text(chosen)}"
        if not isinstance(chosen, list):
            raise FinetuneError(
                f"{key}={value!r} must be the name of a choice: {', '.join(groups[key][:8])}. Values within the group "
                f"are given by their keys, as optimizer__lr=1e-3."
            )
        return f"{key}={grammar(chosen)}"
    if value is None and key == "backbone.weights":
        return f"{key}=none"
    if isinstance(value, str):
        return f"{key}={_text(value)}"
    if not isinstance(value, dict):
        return f"{key}={grammar(value)}"
    if any(f"{key}.".startswith(f"{free}.") for free in FREE_KEYS):
        return _free_mapping(key, value)
    return f"{key}={_mapping(key, value)}"


def _text(text: str) -> str:
    """A text in quotes, where it needs them."""
    return text if SIMPLE.fullmatch(text) and parse([f"seed={text}"])[0].value() == text else quoted(text)


def _free_mapping(key: str, value: dict[str, Any]) -> str:
    """A mapping with keys of any text: as YAML where that is read the same, else in encoded form."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False).strip()
    readable = f"{key}={text}"
    try:
        if decode_keys(parse(add_force_prefix([readable]))[0].value()) == value and "\n" not in text:
            return readable
    except FinetuneError:
        pass
    return f"{key}={grammar(value)}"


def _mapping(key: str, value: Any) -> str:
    """A mapping whose keys are those of the configuration."""
    if isinstance(value, list):
        return f"[{','.join(_mapping(key, inner) for inner in value)}]"
    if not isinstance(value, dict):
        return grammar(value)
    if wrong := [name for name in value if not ID.fullmatch(name) or name.lower() in READ_AS_VALUES]:
        raise FinetuneError(f"{key}={value!r}: the key {wrong[0]!r} must be letters, digits and _.")
    return "{" + ",".join(f"{name}:{_mapping(key, inner)}" for name, inner in value.items()) + "}"


def plain(name: str, value: Any) -> Any:
    """`value` in what a configuration holds: dict, list, str, int, float, bool and None.

    Raises:
        FinetuneError: a value of another type, or a text that a configuration file cannot hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return _checked(name, value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_checked(name, str(key)): plain(name, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(name, inner) for inner in value]
    if isinstance(value, set | frozenset):
        raise FinetuneError(f"{name}={value!r} is a set, which has no order. Give a list.")
    raise FinetuneError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}; a configuration holds numbers, texts, lists "
        "and mappings. Code of your own is chosen by its name: EXTENDING.md."
    )


def _checked(name: str, text: str) -> str:
    """A text that a configuration file holds as it is."""
    if "${" in text:
        raise FinetuneError(f"{name}={text!r} holds ${{, which a configuration reads as a reference. Rename it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FinetuneError(f"{name}={text!r} is not UTF-8, and cannot be written down. Rename it.") from None
    return text
