"""From typed words to a configuration, or one line that says what is wrong."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config.grammar import ENCODED, decode_key, decode_keys, grammar
from finetune.errors import FinetuneError, one_of

POLICIES = ("data.uncertain", "data.missing")
"""Mappings finding -> policy; a single policy is that of `default`."""
FREE_KEYS = (
    *POLICIES,
    "data.sources",
    "data.map",
    "evaluation.operating_points",
    "evaluation.metrics",
    "loss.pos_weight",
    "loss.class_weight",
    "callbacks.extra",
    "prevalence",
    "search",
)
"""Mappings whose keys are the user's: findings, classes, names of data sets, thresholds and callbacks."""

CONFIG_DIRS = "FINETUNE_CONFIG_DIR"
"""Environment variable with further configuration folders, set by --config-dir; the processes of other ranks get it."""


def fast_precision() -> str:
    """bf16-mixed on a CPU with AMX tiles and on a GPU that has the type; 32-true elsewhere, where it gains nothing."""
    import torch

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    return "bf16-mixed" if cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text() else "32-true"


OmegaConf.register_new_resolver("fast_precision", fast_precision, replace=True)


def conf_dir() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def config_dirs() -> list[Path]:
    """conf/, then the folders of the user.

    Raises:
        FinetuneError: a folder that does not exist, or that holds a choice of a name that conf/ has already: it would
            never be read.
    """
    builtin = conf_dir()
    further = [Path(name).resolve() for name in os.environ.get(CONFIG_DIRS, "").split(os.pathsep) if name]
    for folder in further:
        if not folder.is_dir():
            raise FinetuneError(f"--config-dir={folder} is not a folder.")
        if shadowed := sorted(
            str(f.relative_to(folder)) for f in folder.rglob("*.yaml") if _exists(builtin, folder, f)
        ):
            raise FinetuneError(
                f"--config-dir={folder}: {shadowed[0]} has the name of a file in conf/, which is read first. Rename it."
            )
    return [builtin, *further]


def _exists(builtin: Path, folder: Path, file: Path) -> bool:
    return (builtin / file.relative_to(folder)).exists()


def search_path() -> list[str]:
    """The override that makes Hydra read the folders of the user besides conf/."""
    further = ",".join(f"'file://{folder}'" for folder in config_dirs()[1:])
    return [f"hydra.searchpath=[{further}]"] if further else []


def choices() -> dict[str, list[str]]:
    """Configuration group -> its choices."""
    groups: dict[str, set[str]] = {}
    for conf in config_dirs():
        for folder in (path for path in conf.iterdir() if path.is_dir()):
            names = {file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_")}
            groups.setdefault(folder.name, set()).update(names)
    return {group: sorted(names) for group, names in sorted(groups.items())}


def parse(overrides: list[str]) -> list[Override]:
    """Typed words -> Hydra's overrides; a word that is none is an error."""
    parser = OverridesParser.create()
    parsed = []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:  # OverrideParseException, or what the grammar raises itself
            quote = "'data.findings=[Mass,Nodule]', and one that is a text twice: \"data.root='a, b'\"."
            hint = f"Quote values with spaces, commas or brackets: {quote}" if "=" in word else "--help shows examples."
            raise FinetuneError(f"{word!r} is not of the form key=value. {hint}") from None
    return parsed


def add_force_prefix(words: list[str]) -> list[str]:
    """The words with Hydra's ++ before the keys of OPEN mappings, where data.uncertain=one means its `default`."""
    words = [_encoded(word) for word in words]
    ready = []
    for word, override in zip(words, parse(words), strict=True):
        key, value = str(override.key_or_group), override.value()
        if key in POLICIES and isinstance(value, str):
            word = word.replace(key, f"{key}.default", 1)
        elif not override.is_add() and not override.is_force_add() and not override.is_delete():
            inside = any(key.startswith(f"{name}.") for name in FREE_KEYS)
            word = f"++{word}" if inside or (key in FREE_KEYS and isinstance(value, dict)) else word
        ready.append(word)
    return ready


def _encoded(word: str) -> str:
    """A mapping for a free key, typed as YAML with keys that Hydra's grammar lacks, in encoded form."""
    key, separator, text = word.partition("=")
    if key.lstrip("+") not in FREE_KEYS or not text.startswith("{"):
        return word
    try:
        OverridesParser.create().parse_override(word)
        return word
    except HydraException:
        try:
            mapping = yaml.safe_load(text)
        except yaml.YAMLError:
            return word  # Hydra's message is better
        return f"{key}{separator}{grammar(mapping)}" if isinstance(mapping, dict) else word


def decoded(config: DictConfig) -> DictConfig:
    """The configuration with the free keys decoded."""
    for name in FREE_KEYS:
        node = OmegaConf.select(config, name)
        if isinstance(node, DictConfig):
            encoded = OmegaConf.to_container(node, resolve=False)
            if (mapping := decode_keys(encoded)) != encoded:
                OmegaConf.update(config, name, mapping, merge=False)
    return config


def compose(overrides: list[str], *, sweep: bool = False) -> DictConfig:
    """The configuration for `overrides`, without Hydra's own node; of a sweep, that of its first job.

    Raises:
        FinetuneError: a group, choice or key that does not exist, or a word that is not key=value.
    """
    overrides = add_force_prefix(overrides)
    parsed = parse(overrides)
    words = []
    for word, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            if not sweep:
                raise FinetuneError(f"{word!r} names several values. Add -m to run one after the other, or choose one.")
            for value in override.sweep_string_iterator():  # check every value, not only the first
                composed([*_without_sweeps(overrides, parsed), f"{override.get_key_element()}={value}"])
            first = next(iter(override.sweep_string_iterator()))
            words.append(f"{override.get_key_element()}={first}")
        else:
            words.append(word)
    return composed(words)


def _without_sweeps(overrides: list[str], parsed: list[Override]) -> list[str]:
    return [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]


def composed(words: list[str], *, with_hydra: bool = False) -> DictConfig:
    parsed = parse(words)
    _check_groups(parsed)
    _check_free_keys(words, parsed)
    running = GlobalHydra.instance().hydra  # inside a job Hydra is initialised already
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return decoded(hydra_compose("config", [*search_path(), *words], return_hydra_config=with_hydra))
    except (HydraException, OmegaConfBaseException, MissingConfigException) as error:
        raise _explain(error, words) from None
    finally:
        GlobalHydra.instance().hydra = running


def _check_groups(parsed: list[Override]) -> None:
    groups = choices()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        first = str(key).split(".")[0].split("@")[0]
        if override.is_add() and not _is_free_key(override) and (first == "data" or first not in {*groups, "hydra"}):
            raise FinetuneError(f"{override.input_line!r}: no key can be added there, nothing would read it.")
        if override.is_delete() and key in groups:
            raise FinetuneError(f"{override.input_line!r}: the group {key} cannot be left out.")
        if key in groups and not override.is_sweep_override() and not override.is_delete():
            for choice in value if isinstance(value, list) and value else [value]:
                if not isinstance(choice, str) or choice not in groups[key]:
                    raise one_of(key, "null" if choice is None else choice, groups[key])


def _is_free_key(override: Override) -> bool:
    return any(f"{override.key_or_group}.".startswith(f"{name}.") for name in FREE_KEYS)


def _check_free_keys(words: list[str], parsed: list[Override]) -> None:
    """A typed free mapping must exist in the configuration: otherwise nothing reads it."""
    free = [override for override in parsed if _is_free_key(override) and override.key_or_group != "search"]
    if not free:
        return
    base = composed([word for word, override in zip(words, parsed, strict=True) if override not in free])
    for override in free:
        name = next(open_name for open_name in FREE_KEYS if f"{override.key_or_group}.".startswith(f"{open_name}."))
        if OmegaConf.select(base, name, default="absent") == "absent":
            raise FinetuneError(f"{_typed(override)!r}: there is no key {name} here.{_having(name)}")
        if isinstance(override.value(), list) and name == override.key_or_group and name != "data.sources":
            expected = "a policy, or finding: policy" if name in POLICIES else "NAME: value"
            raise FinetuneError(f"{_typed(override)!r} must be {expected} in braces.")


def _having(key: str) -> str:
    """Which choices of its group have the dotted `key`, in a sentence; empty where none has."""
    group, _, name = key.partition(".")
    owners = [
        f"{group}={file.stem}"
        for folder in config_dirs()
        for file in sorted((folder / group).glob("*.yaml"))
        if name.split(".")[0] in (yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    ]
    return f" These have it: {', '.join(owners)}." if owners else ""


def _typed(override: Override) -> str:
    return re.sub(f"{ENCODED}[0-9a-f]+", lambda key: decode_key(key[0]), str(override.input_line).lstrip("+"))


def _explain(error: Exception, words: list[str]) -> FinetuneError:
    """Hydra's message in terms of the key, its value and the choices."""
    match = re.search(r"Could not (?:override|append to|delete from)(?: config)?[^']*'([^']+)'", str(error))
    if not match:
        cause = error.__cause__ or error
        return FinetuneError(f"The configuration cannot be composed: {str(cause).splitlines()[0]}")
    key = match.group(1).split("=")[0].lstrip("+~")
    word = next((w for w in words if w.lstrip("+~").startswith(f"{key}=")), key)
    other_words = [w for w in words if w != word]
    known_keys = list(dict.fromkeys([*sorted(leaf_keys(composed(other_words))), *choices()]))
    parent, _, last = key.rpartition(".")
    same_name = [name for name in known_keys if name.rpartition(".")[2] == last and name != key]
    near = same_name[:1] if len(same_name) == 1 else difflib.get_close_matches(key, known_keys, n=1)
    beside = [name for name in known_keys if name.rpartition(".")[0] == parent]
    owners = _having(key) if parent in choices() else ""
    hint = f" Did you mean {near[0]}?" if near and not owners else ""
    return FinetuneError(
        f"{word!r}: there is no key {key}.{hint}{owners} Known here: {', '.join(beside or sorted(choices()))}."
    )


def leaf_keys(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all values that can be set."""
    values = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    names: list[str] = []
    assert isinstance(values, dict)
    for key, value in ((str(k), v) for k, v in values.items()):
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            names += leaf_keys(value, f"{name}.")
        elif not key.startswith("_"):
            names.append(name)
    return names


def as_yaml(config: DictConfig) -> str:
    """The composed configuration for reading."""
    return OmegaConf.to_yaml(config)
