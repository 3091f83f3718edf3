"""The configuration of a job: typed overrides, the demo if there are no data, the run's data if a model is reused,
and the data sets of a joint one. `running` gives it to Hydra, which makes the run folder."""

import copy
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import build, launchers
from finetune.config.allowed import import_trusted
from finetune.config.overrides import (
    add_force_prefix,
    as_yaml,
    choices,
    compose,
    composed,
    conf_dir,
    config_dirs,
    decoded,
    parse,
)
from finetune.config.values import unknown_key
from finetune.errors import FinetuneError, one_of
from finetune.evaluation.answers import task_name
from finetune.runs.folder import RunFolder

__all__ = ["as_yaml", "choices", "compose", "conf_dir", "expand", "parse", "plain", "wants_demo"]

DEMO = "demo"
"""The experiment that replaces data=chestxray where there are no data yet."""
CHECKED = ("fit", "preview", "tune")
"""Jobs whose whole configuration is checked before anything is read."""
JOBS_REUSING_DATA = ("evaluate", "explain")
"""Jobs that read the data of their model's run, unless other data are named."""


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, every interpolation resolved.

    Raises:
        FinetuneError: a required value is missing.
    """
    config = decoded(config)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise FinetuneError(f"{missing[0]} must be given: add {missing[0]}=... to the command.")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    data = resolved.get("data")
    if isinstance(data, dict) and data.get("sources"):
        data["source"]["sources"] = joined(data["sources"], import_trusted({"trust": resolved.get("trust")}))
    return {str(key): value for key, value in resolved.items()}


def joined(sources: Any, trust: list[str]) -> dict[str, Any]:
    """data.sources as a node to build for each data set: the data set's own configuration with its root and options.

    Raises:
        FinetuneError: a data set or an option that does not exist.
    """
    if isinstance(sources, list) and len(set(map(str, sources))) < len(sources):
        raise FinetuneError(f"data.sources={sources} names a data set twice. Give each a name: {{a: {{data: ...}}}}.")
    if isinstance(sources, list | str):
        sources = dict.fromkeys([sources] if isinstance(sources, str) else sources)
    if not isinstance(sources, dict):
        raise FinetuneError(f"data.sources={sources} must be names of data sets, or name: root, in brackets or braces.")
    nodes = {}
    for name, entry in sources.items():
        where = f"data.sources.{name}"
        if not isinstance(entry, dict | str | None):
            raise FinetuneError(f"{where}={entry} must be the set's root, or its options: {{data: NAME, root: DIR}}.")
        options = dict(entry) if isinstance(entry, dict) else {} if entry is None else {"root": entry}
        data = options.pop("data", name)
        data_sets = [choice for choice in choices()["data"] if choice != "joint"]
        if data not in data_sets:
            raise one_of("data.sources" if data == name else f"{where}.data", data, data_sets)
        config = composed([f"data={data}"])
        accepted = source_keys(data)
        for key, value in options.items():
            if key not in accepted:
                raise unknown_key(where, key, value, ["data", *accepted])
            OmegaConf.update(config, f"data.{key}", value, force_add=True)
        settings = OmegaConf.to_container(config.data, resolve=True)
        assert isinstance(settings, dict)
        nodes[str(name)] = build.source_node({str(key): value for key, value in settings.items()}, trust)
    return nodes


def source_keys(choice: str) -> list[str]:
    """The options of a data set: the keys of its file in conf/data, and its root, without those of every data set."""
    settings = yaml.safe_load(data_file(choice).read_text(encoding="utf-8"))
    return sorted({"root", *(key for key in settings if key not in (*shared_keys(), "defaults", "name", "source"))})


def shared_keys() -> list[str]:
    """The keys that every data set has."""
    return list(yaml.safe_load(data_file("_base").read_text(encoding="utf-8")))


def data_file(choice: str) -> Path:
    """The file of a choice of data."""
    files = [folder / "data" / f"{choice}.yaml" for folder in config_dirs()]
    return next((file for file in files if file.is_file()), files[0])


def wants_demo(config: DictConfig, overrides: list[str]) -> bool:
    """Whether this fit uses the synthetic set: data=chestxray, no root named, nothing at the default root."""
    return (
        config.job in CHECKED
        and config.data.name == "chestxray"
        and not Path(config.data.root).exists()
        and not any(o.key_or_group in ("data.root", "experiment") for o in parse(overrides))
    )


def expand(words: list[str], *, sweep: bool = False) -> list[str]:
    """The typed words, checked against the configuration, with the demo's recipe where there is no data yet."""
    words = add_force_prefix(words)
    launchers.check(words, sweep=sweep)
    words = add_groups_of_run(words, sweep=sweep)
    config = compose(words, sweep=sweep)
    if wants_demo(config, words):
        words = [f"experiment={DEMO}", *words]
        config = compose(words, sweep=sweep)
    if config.job in CHECKED:
        build.check(plain(config))
    return words


def add_groups_of_run(words: list[str], *, sweep: bool) -> list[str]:
    """For job=evaluate or explain: the group of the run's own data set and of its task, where they are not typed, so
    that their keys can be."""
    parsed = {o.key_or_group: o.value() for o in parse(words) if not o.is_sweep_override()}
    if parsed.get("job") not in JOBS_REUSING_DATA:
        return words
    config = compose([w for w in words if "." not in w.partition("=")[0]], sweep=sweep)  # keys of groups to come
    added = []
    if "task" not in parsed and (name := task_of_run(config)) != config.task.name and name in choices()["task"]:
        added.append(f"task={name}")
    if "data" not in parsed and (data := data_of_run(config)) is not None and (group := data_group(data)) is not None:
        added.append(f"data={group}")
    return [*words, *added]


def data_group(data: dict[str, Any]) -> str | None:
    """The file of conf/data that a run's data settings came from: by their name, else by their source."""
    names = choices()["data"]
    if data["name"] in names:
        return str(data["name"])
    target = (data.get("source") or {}).get("_target_")
    for name in names:
        node = yaml.safe_load(data_file(name).read_text(encoding="utf-8"))
        if target and (node.get("source") or {}).get("_target_") == target:
            return name
    return None


def task_of_run(config: DictConfig) -> str:
    """The task of the run whose model is asked again; of a model file by itself, that of the configuration."""
    run = RunFolder(Path(str(config.model)))
    return task_name(run.read_config()) if run.config.is_file() else str(config.task.name)


def data_of_run(config: DictConfig) -> dict[str, Any] | None:
    """The data settings of the run whose model is to be evaluated; None for a model file without a run."""
    run = RunFolder(Path(str(config.model)))
    return run.read_config()["data"] if run.config.is_file() else None


def inherit_data(config: DictConfig, words: list[str]) -> None:
    """Where no data set was typed, take the run's data settings, overridden by what was typed."""
    data = data_of_run(config)
    typed = {override.key_or_group for override in parse(words)}
    if data is None or "data" in typed:
        return
    typed_values = {
        key: copy.deepcopy(OmegaConf.select(config, key)) for key in sorted(typed) if key.startswith("data.")
    }
    if data_group(data) is None:  # a source of the user, whose file of conf/data is not available
        shared = {key: config.data[key] for key in config.data if key in shared_keys()}
        OmegaConf.update(config, "data", {**shared, **data}, merge=False, force_add=True)
    adopted = {key: data[key] for key in data if key in config.data and key != "source" and f"data.{key}" not in typed}
    for key, value in [*((f"data.{name}", value) for name, value in adopted.items()), *typed_values.items()]:
        try:
            OmegaConf.update(config, key, value, force_add=True)
        except (OmegaConfBaseException, TypeError, AttributeError):
            ours = ".".join(key.split(".")[:2])
            raise FinetuneError(f"{key}={value} is incompatible with the {ours} of the run {config.model}.") from None
