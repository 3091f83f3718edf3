"""environment.json, the origin of a run: the command, versions, machine, commit and data."""

import contextlib
import os
import platform
import shlex
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import finetune
from finetune.data.table import SampleTable

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


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def command(words: list[str]) -> str:
    """The command, ready to be typed again."""
    return "python -m finetune " + shlex.join(words) if words else "python -m finetune"


def environment_facts() -> dict[str, Any]:
    """Versions, machine and commit: without names of people or places."""
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
    """The CPU's name, if the system has it."""
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


def data_facts(table: SampleTable) -> dict[str, Any]:
    """The facts of a sample table in environment.json."""
    return {
        "name": table.name,
        "root": table.root.name,
        "hash": table.hash(),
        "kind": table.kind,
        "classes": table.classes,
        "synthetic": table.synthetic,
        "notes": table.notes,
    }
