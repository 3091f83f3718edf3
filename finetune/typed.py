"""From typed words to a configuration, and a line that says what is wrong with them."""

import difflib
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.errors import FinetuneError, one_of

OPEN = ("data.uncertain", "data.missing", "data.sources", "data.map", "evaluation.operating_points")
"""Mappings whose keys are the user's: findings, names of data sets, classes of a model, names of thresholds."""


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
                composed([*_without_sweeps(overrides, parsed), f"{override.get_key_element()}={value}"])
            first = next(iter(override.sweep_string_iterator()))
            words.append(f"{override.get_key_element()}={first}")
        else:
            words.append(word)
    return composed(words)


def _without_sweeps(overrides: list[str], parsed: list[Override]) -> list[str]:
    return [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]


def composed(words: list[str]) -> DictConfig:
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
    others = composed([word for word, override in zip(words, parsed, strict=True) if override not in mine])
    for override in mine:
        name = ".".join(str(override.key_or_group).split(".")[:2])
        if OmegaConf.select(others, name, default="absent") == "absent":
            raise FinetuneError(f"{_typed(override)!r}: data={others.data.name} has no {name}.")
        if isinstance(override.value(), list) and name in OPEN[:2]:
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
    known = list(dict.fromkeys([*sorted(leaf_keys(composed(others))), *choices()]))
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


def as_yaml(config: DictConfig) -> str:
    """The composed configuration for reading."""
    return OmegaConf.to_yaml(config)
