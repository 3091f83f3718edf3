"""RESULTS.md: one section per benchmark, each written anew by its own command."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(title: str, text: str) -> None:
    """The section anew, other sections as they were."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    rest = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", old, flags=re.DOTALL)
    RESULTS.write_text(f"{rest.rstrip()}\n\n## {title}\n\n{text.rstrip()}\n", encoding="utf-8")


def machine() -> str:
    """What it was measured on, in one line."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = re.findall(r"model name\s*: (.*)", text) or [platform.processor() or platform.machine()]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torchvision"))
    return (
        f"{models[0]}, {torch.get_num_threads()} threads of {os.cpu_count()} processors, "
        f"{torch.backends.cpu.get_cpu_capability()}; {packages}, Python {platform.python_version()}"
    )
