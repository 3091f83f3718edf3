"""Hydra's launchers for sweeps: which are known, how they are installed, and what a run gets of the machine's cores."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config.overrides import composed, parse
from finetune.errors import FinetuneError, MissingExtra
from finetune.training.launch import ranks
from finetune.training.launch.cores import cores

GROUP = "hydra/launcher"
BASIC = "basic"
"""Hydra's own: one run after the other, in this process."""
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_local": "submitit", "submitit_slurm": "submitit"}
"""Launcher -> the extra that installs it; it is also in the name of Hydra's plugin."""


@dataclass(frozen=True)
class Launcher:
    """The chosen launcher of a sweep."""

    name: str
    sweep_dir: Path
    """The sweep's folder, resolved: the processes of its runs may have other working folders."""
    cores: int | None
    """Cores of each run; None where the user or a cluster decides."""


def check(words: list[str], *, sweep: bool) -> None:
    """Check that a typed launcher is installed and has something to launch.

    Raises:
        FinetuneError: naming the extra to install, or the way out.
    """
    typed = [o for o in parse(words) if o.key_or_group == GROUP]
    if not typed:
        return
    name = typed[-1].value()
    if typed[-1].is_sweep_override() or not isinstance(name, str):
        raise FinetuneError(f"{typed[-1].input_line!r} must name a single launcher: {', '.join([BASIC, *EXTRAS])}.")
    if not sweep:
        raise FinetuneError(f"{GROUP}={name} starts the runs of a sweep. Add -m, or leave it out.")
    if name in EXTRAS and not is_installed(EXTRAS[name]):
        raise MissingExtra(f"{GROUP}={name} needs hydra-{EXTRAS[name]}-launcher, which is not installed", EXTRAS[name])
    place = ranks.launched_place()
    if name != BASIC and place is not None and place.size > 1:
        raise FinetuneError(
            f"{GROUP}={name} starts processes, but a launcher (torchrun, srun) has started {place.size} already: "
            f"{place.launcher}={place.size}. Start the sweep as a single process, or leave {GROUP} out."
        )


def is_installed(extra: str) -> bool:
    """Whether Hydra's plugin of an extra can be imported."""
    try:
        return find_spec(f"hydra_plugins.hydra_{extra}_launcher") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False


def chosen(words: list[str], total: int | None) -> Launcher | None:
    """The launcher of a sweep of `total` runs; None for Hydra's own, which runs them in this process.

    Raises:
        FinetuneError: it would start several processes for a run, each of which would do the whole run.
    """
    first = [
        f"{o.get_key_element()}={next(iter(o.sweep_string_iterator()))}" if o.is_sweep_override() else word
        for word, o in zip(words, parse(words), strict=True)
    ]
    node = composed(first, with_hydra=True).hydra
    name = str(OmegaConf.to_container(node.runtime.choices)[GROUP])  # type: ignore[index,call-overload]
    if name == BASIC:
        return None
    settings = node.launcher
    if name == "submitit_local" and (settings.tasks_per_node, settings.nodes) != (1, 1):
        raise FinetuneError(
            f"hydra.launcher.tasks_per_node={settings.tasks_per_node} with {GROUP}=submitit_local would do each run "
            "several times. Leave it at 1: trainer.devices=N starts the processes of a run."
        )
    try:
        sweep_dir = Path(str(node.sweep.dir)).absolute()
    except OmegaConfBaseException as error:
        raise FinetuneError(f"hydra.sweep.dir cannot be resolved: {str(error).splitlines()[0]}.") from None
    return Launcher(name, sweep_dir, None if "OMP_NUM_THREADS" in os.environ else cores_of_run(name, settings, total))


def cores_of_run(name: str, settings: DictConfig | dict[str, Any], total: int | None) -> int | None:
    """The cores of each run, so that runs beside each other share them.

    Args:
        name: the launcher.
        settings: its node, hydra.launcher.
        total: the number of runs; None where it is not known.

    Returns:
        None for launchers that reserve cores themselves.
    """
    if name == "joblib":
        jobs = int(settings["n_jobs"])
        jobs = max(1, jobs if jobs > 0 else cores() + 1 + jobs)  # as joblib counts: -1 is one per core
        return max(1, cores() // min(jobs, total or jobs))
    if name == "ray":
        return max(1, int(dict(settings["ray"]["remote"]).get("num_cpus") or 1))  # Ray's own default
    if name == "submitit_local":  # all at the same time
        return int(settings["cpus_per_task"] or max(1, cores() // (total or cores())))
    return None
