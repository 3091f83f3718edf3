"""C sources of this package, compiled when first wanted; each has a way round it for where there is no compiler.

The library lives in a temporary folder until it is loaded, so that no machine ever meets another machine's code.
FINETUNE_NATIVE=0 leaves all of them out.
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
    """The functions of a C file, or None. What it asks of OpenMP is found in the runtime that torch has brought."""
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
            ]  # without -fopenmp: torch's runtime serves
            for command in (compile_, link):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
