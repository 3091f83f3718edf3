"""Composing a configuration from what was typed, and saying in a line what is wrong with it."""

import copy
import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune import build
from finetune.errors import FinetuneError, one_of
from finetune.jobs import run_job
from finetune.training import ranks

DEMO = "demo"
"""The experiment that stands in for data=chestxray where there is no data yet."""


ADOPTING = ("evaluate", "explain")
"""Jobs that read the data of the run whose model they take, where no other data are named."""

OPEN = ("data.uncertain", "data.missing", "data.sources", "evaluation.operating_points")
"""Mappings whose keys are the user's: findings, names of data sets, names of thresholds."""


def half_where_fast() -> str:
    """bf16-mixed on a CPU with AMX tiles and on a GPU that has the type; 32-true elsewhere, where it gains nothing."""
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    return "bf16-mixed" if cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text() else "32-true"


OmegaConf.register_new_resolver("half_where_fast", half_where_fast, replace=True)


def conf_dir() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def choices() -> dict[str, list[str]]:
    """Configuration group -> its choices."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_"))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir()
    }


def parse(overrides: list[str]) -> list[Override]:
    """Typed words -> Hydra's overrides; a word that is none is an error."""
    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:  # OverrideParseException, or what the grammar raises itself
            hint = "Quote values with spaces, commas or brackets: 'data.findings=[Mass,Nodule]'." if "=" in word else ""
            raise FinetuneError(
                f"{word!r} is not of the form key=value. {hint or 'python -m finetune --help shows examples.'}"
            ) from None
    return parsed


def opened(words: list[str]) -> list[str]:
    """The words with Hydra's ++ before the keys of OPEN mappings, where data.uncertain=one means its `default`."""
    ready = []
    for word, override in zip(words, parse(words), strict=True):
        key, value = str(override.key_or_group), override.value()
        if key in OPEN[:2] and isinstance(value, str):
            word = word.replace(key, f"{key}.default", 1)
        elif not override.is_add() and not override.is_force_add() and not override.is_delete():
            inside = any(key.startswith(f"{name}.") for name in OPEN)
            word = f"++{word}" if inside or (key in OPEN and isinstance(value, dict)) else word
        ready.append(word)
    return ready


def compose(overrides: list[str], *, sweep: bool = False) -> DictConfig:
    """The configuration for `overrides`, without Hydra's own node; of a sweep, that of its first job.

    Raises:
        FinetuneError: a group, choice or key that does not exist, or a word that is not key=value.
    """
    overrides = opened(overrides)
    parsed = parse(overrides)
    words = []
    for word, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            if not sweep:
                raise FinetuneError(f"{word!r} names several values. Add -m to run one after the other, or choose one.")
            for value in override.sweep_string_iterator():  # each value must be a known one, not the first alone
                _compose([*_without_sweeps(overrides, parsed), f"{override.get_key_element()}={value}"])
            first = next(iter(override.sweep_string_iterator()))
            words.append(f"{override.get_key_element()}={first}")
        else:
            words.append(word)
    return _compose(words)


def _without_sweeps(overrides: list[str], parsed: list[Override]) -> list[str]:
    return [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]


def _compose(words: list[str]) -> DictConfig:
    parsed = parse(words)
    _check_groups(parsed)
    _check_open(words, parsed)
    running = GlobalHydra.instance().hydra  # inside a job Hydra is at work already and would refuse
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return hydra_compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException, MissingConfigException) as error:
        raise _explain(error, words) from None
    finally:
        GlobalHydra.instance().hydra = running


def _check_groups(parsed: list[Override]) -> None:
    groups = choices()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        first = str(key).split(".")[0].split("@")[0]
        if override.is_add() and not _is_open(override) and (first == "data" or first not in {*groups, "hydra"}):
            raise FinetuneError(f"{override.input_line!r}: no key can be added there, nothing would read it.")
        if override.is_delete() and key in groups:
            raise FinetuneError(f"{override.input_line!r}: the group {key} cannot be left out.")
        if key in groups and not override.is_sweep_override() and not override.is_delete():
            for chosen in value if isinstance(value, list) else [value]:
                if chosen is not None and (not isinstance(chosen, str) or chosen not in groups[key]):
                    raise one_of(key, chosen, groups[key])


def _is_open(override: Override) -> bool:
    return any(f"{override.key_or_group}.".startswith(f"{name}.") for name in OPEN)


def _check_open(words: list[str], parsed: list[Override]) -> None:
    """What is written into an open mapping must find it in the configuration: nothing else would read it."""
    mine = [override for override in parsed if _is_open(override)]
    if not mine:
        return
    others = _compose([word for word, override in zip(words, parsed, strict=True) if override not in mine])
    for override in mine:
        name = ".".join(str(override.key_or_group).split(".")[:2])
        if OmegaConf.select(others, name, default="absent") == "absent":
            raise FinetuneError(f"{_typed(override)!r}: data={others.data.name} has no {name}.")
        if isinstance(override.value(), list) and name != "data.sources":
            raise FinetuneError(f"{_typed(override)!r} must be a policy, or finding: policy in braces.")


def _typed(override: Override) -> str:
    return str(override.input_line).lstrip("+")


def _explain(error: Exception, words: list[str]) -> FinetuneError:
    """Hydra's message in terms of the key, its value and the choices."""
    found = re.search(r"Could not (?:override|append to|delete from)(?: config)?[^']*'([^']+)'", str(error))
    if not found:
        cause = error.__cause__ or error
        return FinetuneError(f"The configuration cannot be composed: {str(cause).splitlines()[0]}")
    key = found.group(1).split("=")[0].lstrip("+~")
    word = next((w for w in words if w.lstrip("+~").startswith(f"{key}=")), key)
    others = [w for w in words if w != word]
    known = list(dict.fromkeys([*sorted(leaf_keys(_compose(others))), *choices()]))
    parent = key.rpartition(".")[0]
    near = difflib.get_close_matches(key, known, n=1)
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    hint = f" Did you mean {near[0]}?" if near else ""
    return FinetuneError(
        f"{word!r}: there is no key {key}.{hint} Known here: {', '.join(beside or sorted(choices()))}."
    )


def leaf_keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all values that can be set."""
    plain = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    names: list[str] = []
    assert isinstance(plain, dict)
    for key, value in ((str(k), v) for k, v in plain.items()):
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            names += leaf_keys(value, f"{name}.")
        elif not key.startswith("_"):
            names.append(name)
    return names


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, every interpolation resolved.

    Raises:
        FinetuneError: a value that must be given and was not.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise FinetuneError(f"{missing[0]} must be given: add {missing[0]}=... to the command.")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    data = resolved.get("data")
    if isinstance(data, dict) and data.get("sources"):
        data["source"]["sources"] = joined(data["sources"])
    return {str(key): value for key, value in resolved.items()}


def joined(sources: Any) -> dict[str, Any]:
    """What data.sources says, as a node to build for each: the data set's own configuration with its root and options.

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
    for name, given in sources.items():
        where = f"data.sources.{name}"
        if not isinstance(given, dict | str | None):
            raise FinetuneError(f"{where}={given} must be the set's root, or its options: {{data: NAME, root: DIR}}.")
        options = dict(given) if isinstance(given, dict) else {} if given is None else {"root": given}
        data = options.pop("data", name)
        known = [choice for choice in choices()["data"] if choice != "joint"]
        if data not in known:
            raise one_of("data.sources" if data == name else f"{where}.data", data, known)
        config = _compose([f"data={data}"])
        # an option of the source is what its node reads; batch size and the like belong to the whole
        takes = sorted(set(re.findall(r"\$\{data\.(\w+)\}", OmegaConf.to_yaml(config.data.source))))
        for key, value in options.items():
            if key not in takes:
                raise build.unknown_key(where, key, value, ["data", *takes])
            OmegaConf.update(config, f"data.{key}", value, force_add=True)
        nodes[str(name)] = OmegaConf.to_container(config.data.source, resolve=True)
    return nodes


def wants_demo(config: DictConfig, overrides: list[str]) -> bool:
    """Whether this fit has to do with the synthetic set: data=chestxray, no root named, nothing at the default root."""
    return (
        config.job in ("fit", "preview")
        and config.data.name == "chestxray"
        and not Path(config.data.root).exists()
        and not any(o.key_or_group in ("data.root", "experiment") for o in parse(overrides))
    )


def as_yaml(config: DictConfig) -> str:
    """The composed configuration for reading."""
    return OmegaConf.to_yaml(config)


def read(run: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder, as plain values.

    Raises:
        FinetuneError: no run folder, or a config.yaml that is damaged or still holds interpolations.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise FinetuneError(f"{run} is not a run folder: it has no config.yaml.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FinetuneError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(config, dict):
        raise FinetuneError(f"{path} is empty or not a configuration.")
    if "${" in path.read_text(encoding="utf-8"):
        raise FinetuneError(
            f"{path} holds an interpolation (${{...}}); a run's configuration is resolved. Refusing it."
        )
    return config


def expand(words: list[str], *, sweep: bool = False) -> list[str]:
    """The typed words, held against the configuration, with the demo's recipe where there is no data yet."""
    words = _with_own_group(opened(words))
    config = compose(words, sweep=sweep)
    if wants_demo(config, words):
        words = [f"experiment={DEMO}", *words]
        config = compose(words, sweep=sweep)
    if config.job in ("fit", "preview"):
        build.check(plain(config))
    return words


def _with_own_group(words: list[str]) -> list[str]:
    """For job=evaluate or explain without data=: the group of the run's own data set, so that its keys can be typed."""
    parsed = {o.key_or_group: o.value() for o in parse(words) if not o.is_sweep_override()}
    if parsed.get("job") not in ADOPTING or "data" in parsed:
        return words
    config = compose([w for w in words if not w.lstrip("+").startswith("data.")])
    data = own_data(config)
    group = None if data is None else _group_of(data)
    return words if group is None else [*words, f"data={group}"]


def _group_of(data: dict[str, Any]) -> str | None:
    """The file of conf/data that a run's data settings came from: by their name, else by their source."""
    names = choices()["data"]
    if data["name"] in names:
        return str(data["name"])
    target = (data.get("source") or {}).get("_target_")
    for name in names:
        node = yaml.safe_load((conf_dir() / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
        if target and (node.get("source") or {}).get("_target_") == target:
            return name
    return None


def own_data(config: DictConfig) -> dict[str, Any] | None:
    """The data settings of the run whose model is to be evaluated; None for a model file by itself."""
    folder = Path(str(config.model))
    return read(folder)["data"] if (folder / "config.yaml").is_file() else None


def adopt_data(config: DictConfig, words: list[str]) -> None:
    """Where no data set was typed, evaluate a run on its own: its settings, with what was typed on top."""
    data = own_data(config)
    typed = {override.key_or_group for override in parse(words)}
    if data is None or "data" in typed:
        return
    adopted = {key: data[key] for key in data if key in config.data and key != "source" and f"data.{key}" not in typed}
    kept = {key: copy.deepcopy(OmegaConf.select(config, key)) for key in sorted(typed) if key.startswith("data.")}
    for key, value in [*((f"data.{name}", value) for name, value in adopted.items()), *kept.items()]:
        try:
            OmegaConf.update(config, key, value, force_add=True)
        except (OmegaConfBaseException, TypeError, AttributeError):
            ours = ".".join(key.split(".")[:2])
            raise FinetuneError(f"{key}={value} does not go with the {ours} of the run {config.model}.") from None


class _Ended(BaseException):
    """Carries an error past Hydra, which would print the whole list of overrides over any Exception."""

    def __init__(self, error: FinetuneError):
        super().__init__(str(error))
        self.error = error


def tidy(folder: Path) -> None:
    """Remove the folder of a run that ended before it wrote anything, and those of outputs/ that were made for it."""
    if folder.resolve() == Path.cwd():
        return
    home = Path("outputs").resolve()
    for place in (folder, *(above for above in folder.resolve().parents if above.is_relative_to(home))):
        try:
            place.rmdir()  # never one that holds something
        except OSError:
            return


def run(words: list[str], typed: list[str], *, multirun: bool = False) -> None:
    """Let Hydra make the run folder, or one after the other, and start the job in it.

    `words` is what `expand` made of what was `typed`.
    """

    def task(config: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        mine = list(HydraConfig.get().overrides.task) if multirun else typed  # of a=1,2 the one that this run has
        if config.job in ADOPTING:
            adopt_data(config, mine)
        try:
            run_job(plain(config), folder, mine)
        except FinetuneError as error:
            tidy(folder)
            raise _Ended(error) from None

    if ranks.started_elsewhere() and ranks.rank() > 0:
        # one rank of several owns the run folder; the others get it by broadcast and leave nothing behind
        words = [*words, "hydra.run.dir=."]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as they are, to be told apart in main()
    old, sys.argv = sys.argv, [sys.argv[0], *(["--multirun"] if multirun else []), *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")(task)()
    except _Ended as ended:
        raise ended.error from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if error.filename is None or "finetune" in str(error.filename):
            raise
        raise FinetuneError(
            f"The run folder cannot be made: {error.filename} is in the way ({error.strerror}). Move it, or name "
            "another place: hydra.run.dir=DIR."
        ) from None
    finally:
        sys.argv = old
