"""config=FILE: the config.yaml of a run, or a part of one, in place of the defaults; typed words take precedence.

The file becomes a folder of choices, as --config-dir names one: each of its groups is a choice of that group. So
`optimizer=sgd` replaces the group, `optimizer.lr=1e-3` a key, and all checks of typed words apply. What it may build is
on the list of `allowed`; code of the user's is trusted where it is typed, never because a file says so.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from finetune.config.compose import data_file, data_group
from finetune.config.launchers import BASIC, GROUP
from finetune.config.overrides import CONFIG_DIRS, choices, parse
from finetune.config.settings import JOBS, Settings
from finetune.config.values import unknown_key
from finetune.errors import FinetuneError, one_of
from finetune.runs.config_file import CONFIG, read_config_file

CHOICE = "config_file"
"""Name of the choices that a file becomes."""
WORD = f"experiment={CHOICE}"
"""The word that chooses all of them."""
NAMED = ("backbone", "data", "head", "neck")
"""Groups whose nodes say in `name` which file of conf/ they are of."""
JOBS_FROM_FILE = ("fit", "preview")
OWN_KEYS = {key for job in JOBS.values() for key in job.model_fields} - set(Settings.model_fields)
"""Keys of single jobs."""


def is_config_word(word: str) -> bool:
    """Whether a word names a file."""
    return word.startswith("config=")


@contextmanager
def as_choices(words: list[str], *, sweep: bool = False) -> Iterator[list[str]]:
    """Inside, the words without config=FILE, and with the word that chooses what the file holds.

    Raises:
        FinetuneError: a file that is no configuration of a fit, or a word that does not go with it.
    """
    named = [word for word in words if is_config_word(word)]
    if not named:
        yield words
        return
    others = [word for word in words if not is_config_word(word)]
    if len(named) > 1:
        raise FinetuneError(f"{named[1]!r}: a second file. Name one, and type what differs.")
    value = parse(named)[0].value()
    if not isinstance(value, str) or not value:
        raise FinetuneError(f"{named[0]!r} must name a file: config=outputs/RUN/{CONFIG}.")
    file = Path(value).expanduser()
    file = file / CONFIG if file.is_dir() else file
    typed = {str(override.key_or_group): override for override in parse(others)}
    if (job := typed["job"].value() if "job" in typed else "fit") not in JOBS_FROM_FILE:
        raise FinetuneError(f"config={value} is of a fit or a preview. job={job} takes its settings from its words.")
    if "experiment" in typed:
        raise FinetuneError(f"config={value} and {typed['experiment'].input_line!r} both set the whole. Choose one.")
    if sweep and GROUP in typed and typed[GROUP].value() != BASIC:
        raise FinetuneError(
            f"config={value} with {typed[GROUP].input_line!r}: other processes may not see the file. Leave the "
            "launcher out, or make it an experiment in a folder of yours (--config-dir)."
        )
    trust = typed["trust"].value() if "trust" in typed else []
    config = read_config_file(file)
    _check(config, file, str(job), trust if isinstance(trust, list) else [])
    with TemporaryDirectory(prefix="finetune-config-") as folder:
        before = os.environ.get(CONFIG_DIRS)
        os.environ[CONFIG_DIRS] = os.pathsep.join([*([before] if before else []), folder])
        try:
            write(config, file, str(job), Path(folder))
            yield [WORD, *others]
        finally:
            os.environ.pop(CONFIG_DIRS)
            if before is not None:
                os.environ[CONFIG_DIRS] = before


def _check(config: Mapping[str, Any], file: Path, job: str, trust: list[str]) -> None:
    """Keys that a file may have."""
    for key in ("hydra", "defaults"):
        if key in config:
            raise FinetuneError(
                f"{file}: the key {key} is not read from a file. Type hydra.KEY=VALUE; a group is GROUP: CHOICE."
            )
    if config.get("job", "fit") not in JOBS_FROM_FILE:
        raise FinetuneError(f"{file} is the configuration of job={config['job']}; config= takes that of a fit.")
    needed = config.get("trust") or []
    if missing := [module for module in needed if module not in trust] if isinstance(needed, list) else [str(needed)]:
        raise FinetuneError(
            f"{file} was made with code of {', '.join(map(str, missing))}, which runs only where it is typed: add "
            f"trust=[{','.join(map(str, needed if isinstance(needed, list) else missing))}]."
        )
    known = [key for key in JOBS["fit"].model_fields if key != "resolved"]
    for key, node in config.items():
        if isinstance(node, Mapping) and "defaults" in node:  # Hydra would follow it, and place it where it says
            raise FinetuneError(f"{file}: the key {key}.defaults is not read from a file. Name a choice, {key}: NAME.")
        if key not in known and key not in OWN_KEYS:
            raise unknown_key(str(file), key, config[key], known)


def write(config: Mapping[str, Any], file: Path, job: str, folder: Path) -> None:
    """The configuration as a folder of choices: one for each group that it names as a whole, and an experiment."""
    groups = choices()
    overrides: list[dict[str, str]] = []
    content: dict[str, Any] = {}
    for key, node in config.items():
        if key in ("job", "trust") or (key in OWN_KEYS and key not in JOBS[job].model_fields):
            continue
        if key not in groups:
            content[key] = node
            continue
        choice = _choice(key, node, groups[key], file)
        if choice is not None:
            overrides.append({f"override /{key}": choice})
        elif (whole := _whole(key, node, groups[key])) is not None:
            _dump(folder / key / f"{CHOICE}.yaml", whole)
            overrides.append({f"override /{key}": CHOICE})
        elif isinstance(node, Mapping):
            content[key] = node
        else:
            raise FinetuneError(f"{file}: {key}={node} must be a choice ({', '.join(groups[key][:6])}) or a mapping.")
    _dump(folder / "experiment" / f"{CHOICE}.yaml", {"defaults": overrides, **content}, "# @package _global_\n")


def _choice(group: str, node: Any, names: list[str], file: Path) -> str | None:
    """The choice that a node of a file is: its name, or none; None for a node with values."""
    if isinstance(node, str):
        if node not in names:
            raise one_of(f"{file}: {group}", node, names)
        return node
    return "none" if not node and "none" in names else None


def _whole(group: str, node: Any, names: list[str]) -> dict[str, Any] | None:
    """The file of a node that says by itself what it is; None for one that only changes values."""
    if not isinstance(node, Mapping):
        return None
    values = {str(key): value for key, value in node.items()}
    if group == "data" and ("source" in values or values.get("name") in names):
        base = data_group({"name": None, **values})
        if base is not None and _same_source(base, values):
            values.pop("source", None)  # that of conf/ follows keys that are typed, such as data.table
        return {"defaults": [base or "_base"], **values}
    if group in NAMED and "name" in values:
        base = values["name"] if values["name"] in names else "_base" if group == "backbone" else None
        return {"defaults": [base], **values} if base is not None else values
    return values if "_target_" in values else None


def _same_source(base: str, values: Mapping[str, Any]) -> bool:
    """Whether the source of a node of data is that of its file in conf/."""
    of_file = (yaml.safe_load(data_file(base).read_text(encoding="utf-8")).get("source") or {}).get("_target_")
    return "source" not in values or of_file == (values["source"] or {}).get("_target_")


def _dump(file: Path, content: Mapping[str, Any], header: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(header + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
