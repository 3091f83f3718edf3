"""The run folder: what is written into it besides results, and what makes it count as complete."""

import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import finetune
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.files import LONGER, is_finished, resume_word, write_json_atomic, write_text_atomic
from finetune.runs import log

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "torchmetrics",
    "albumentations",
    "numpy",
    "pandas",
)


PARTIAL = re.compile(r"\..+\.\d+")
"""Name of a file that a process was writing when it was killed: .NAME.PID"""
RESULTS = ("scores.json", "explain.json", "preview.json", "compare.json")
"""What jobs other than a fit write last."""


def check_free(run: Path) -> None:
    """Refuse a folder that holds another run; what a stopped job that is no fit has left may be written over."""
    if not (run / "config.yaml").exists():
        return
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    fit = not isinstance(config, dict) or config.get("job", "fit") == "fit"
    if fit or any((run / name).exists() for name in RESULTS):
        way = f"Go on with it by {resume_word(run)}, or name" if fit else "Name"
        raise FinetuneError(f"{run} holds a run already. {way} another folder: hydra.run.dir=DIR.")


def begin(run: Path, config: dict[str, Any], words: list[str]) -> None:
    """Take the folder for a new run: config.yaml, environment.json and log.txt.

    Raises:
        FinetuneError: the folder holds another run.
    """
    check_free(run)
    run.mkdir(parents=True, exist_ok=True)
    log.begin(run, command(words))
    write_config(run, config)
    write_json_atomic(run / "environment.json", {"command": command(words), **environment(), "seed": config["seed"]})


def go_on(run: Path, config: dict[str, Any], words: list[str]) -> None:
    """Take the folder of a stopped or finished fit again, once all was checked: config.yaml anew, the occasion noted in
    environment.json, what a killed process was just writing removed. Results stay as they are."""
    log.begin(run, command(words))
    for folder in (run, run / "checkpoints"):
        for partial in folder.glob(".*"):
            if PARTIAL.fullmatch(partial.name):
                partial.unlink(missing_ok=True)
    if (run / "scores.json").is_file() and not (run / LONGER).is_file():
        write_text_atomic(run / LONGER, "training")
    write_config(run, config)
    again = {"when": now(), "command": command(words), **environment()}
    note(run, resumed=[*read_environment(run).get("resumed", []), again])


def begin_results(run: Path) -> None:
    """From here until `end_results` the results of a finished fit that trained longer are replaced: no reader takes
    them, as they are neither the old nor the new."""
    if (run / "scores.json").is_file():
        write_text_atomic(run / LONGER, "results")


def end_results(run: Path) -> None:
    """The results are whole again."""
    (run / LONGER).unlink(missing_ok=True)


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_config(run: Path, config: dict[str, Any]) -> None:
    """config.yaml: plain values, in the order they were composed."""
    write_text_atomic(run / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def command(words: list[str]) -> str:
    """The command as it could be typed again."""
    return "python -m finetune " + shlex.join(words) if words else "python -m finetune"


def environment() -> dict[str, Any]:
    """Versions, machine and commit: nothing that names a person or a place."""
    import torch

    versions = {"python": platform.python_version(), "finetune": finetune.__version__}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return {
        "versions": versions,
        "commit": commit(),
        "machine": ", ".join([machine, processor(), *gpu]),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout this code runs from, with `+changes` where it differs; None outside a checkout."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")
    return None


def of_data(table: SampleTable) -> dict[str, Any]:
    """What environment.json says of a sample table."""
    return {
        "name": table.name,
        "root": table.root.name,
        "hash": table.hash(),
        "kind": table.kind,
        "classes": table.classes,
        "synthetic": table.synthetic,
        "notes": table.notes,
    }


def note(run: Path, **facts: Any) -> None:
    """Add facts to environment.json."""
    write_json_atomic(run / "environment.json", {**read_environment(run), **facts})


def read_environment(run: Path) -> dict[str, Any]:
    """environment.json; empty where there is none.

    Raises:
        FinetuneError: a file that is damaged.
    """
    path = run / "environment.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise FinetuneError(f"{path} is not an object of JSON.")
    return found


def open_test(run: Path, words: list[str], images: int) -> int:
    """Note in test_openings.jsonl that the scores of the run's test images are about to be seen; how often that was by
    now. A line is added, so that two processes at once lose none."""
    line = json.dumps({"when": now(), "command": command(words), "images": images}, ensure_ascii=False)
    path = run / "test_openings.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def is_complete(run: Path) -> bool:
    """Whether nothing is left to do: results that are whole, and no longer training that was begun and not ended."""
    return is_finished(run) and not (run / LONGER).is_file()


def point_latest(run: Path) -> None:
    """Make outputs/latest the newest completed fit; another process may be doing the same."""
    link = Path("outputs", "latest")
    link.parent.mkdir(exist_ok=True)
    partial = link.with_name(f".latest.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(run.resolve(), link.parent.resolve()), target_is_directory=True)
        os.replace(partial, link)
    except OSError as error:  # a real folder of that name, or a file system without links
        partial.unlink(missing_ok=True)
        print(f"outputs/latest could not be set ({error.strerror}); the run is at {run}.", file=sys.stderr)
