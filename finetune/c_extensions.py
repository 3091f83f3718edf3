"""C sources of this package, compiled at first use; without a compiler each has a fallback.

The library lives in a temporary folder until it is loaded, so that no machine loads code compiled for another.
FINETUNE_NATIVE=0 disables all of them.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, or None. It uses the OpenMP runtime that torch has loaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.environ.get("FINETUNE_NATIVE") == "0" or platform.system() != "Linux":
        return None
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC"]
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    try:
        with tempfile.TemporaryDirectory() as folder:
            object_file, library = Path(folder, "made.o"), Path(folder, "made.so")
            compile_ = [compiler, *flags, "-c", str(source), "-o", str(object_file)]
            link = [
                compiler,
                "-shared",
                str(object_file),
                "-o",
                str(library),
            ]  # without -fopenmp: torch's runtime is used
            for command in (compile_, link):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
