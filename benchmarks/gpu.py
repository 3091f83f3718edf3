"""Training, inference and fits on a CUDA device, in about 8 minutes: writes the section "GPU" of RESULTS.md.

    python -m benchmarks.gpu [--models resnet50 ...] [--parts training fit ...] [--seconds 25] [--minutes 8]
    python -m benchmarks.gpu --device cpu --quick        # tiny sizes through the same code; writes nothing

Networks have random weights and images of 224 px. Ways to do the same are timed in turn by the device's clock, after a
warm-up; ratios are formed within a round, and their median and quartiles given. An item that takes too long or fails is
left out with a note, and so are those that begin after --minutes. Goals stand beside the figures.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu_clock import TimeUp, release, time_limit
from benchmarks.gpu_fit import fit
from benchmarks.gpu_items import Options, compiled, inference, largest_batches, training
from benchmarks.gpu_report import Report
from finetune.backbones import fused

MODELS = ("resnet50", "densenet121", "resnet18")
PARTS: dict[str, Callable[[str, Options, Report], None]] = {
    "training": training,
    "fit": fit,
    "compiled": compiled,
    "inference": inference,
    "largest": largest_batches,
}
PATIENCE = {"compiled": 5.0, "inference": 4.0, "largest": 3.0, "fit": 3.0, "training": 2.0}
"""Times --seconds after which an item is stopped: compiling and drawing images take long before anything is timed."""


def items(models: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """(part, model) in the order of their weight: a fit is measured with the first network only."""
    return [(part, name) for part in PARTS if part in parts for name in (models[:1] if part == "fit" else models)]


def measure(part: str, name: str, options: Options, report: Report) -> None:
    """One item; what goes wrong becomes a note, so that the next one is measured."""
    try:
        with time_limit(PATIENCE[part] * options.seconds):
            PARTS[part](name, options, report)
    except TimeUp as reason:
        report.note(f"{part} of {name}: {reason}.")
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        report.note(f"{part} of {name}: {type(error).__name__}: {message}")
    release()


def run(models: Sequence[str], parts: Sequence[str], options: Options, minutes: float, report: Report) -> None:
    """All items, until the time is up."""
    start = time.monotonic()
    if options.device.type == "cuda" and not fused.available("cuda"):
        report.note("torch cannot compile here: lean and minimal training use torch's operators.")
    for part, name in items(models, parts):
        if time.monotonic() - start > 60 * minutes:
            report.note(f"{part} of {name}: not begun after {minutes:g} minutes.")
            continue
        measure(part, name, options, report)
    report.end()


def main(words: Sequence[str] | None = None) -> Report:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=12, help="of timing for each item")
    parser.add_argument("--minutes", type=float, default=8, help="after which no item begins")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="processes that load images")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes; prints, writes nothing")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here. --device cpu --quick tries the code.")
    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu goes with --quick alone: for figures of a CPU use python -m benchmarks.backbones.")
    device = torch.device("cpu") if given.device == "cpu" else torch.device("cuda", torch.cuda.current_device())
    options = Options(device, given.seconds, workers=given.workers)
    if given.quick:
        options = Options(
            device, seconds=0.0, size=32, batches=(4,), backend="eager", warm_up=1, workers=0, fit_steps=3
        )
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    command = f"python -m benchmarks.gpu {' '.join(sys.argv[1:] if words is None else words)}".rstrip()
    report = Report(command, device, write=not given.quick)
    minutes = 60.0 if given.quick else given.minutes
    run(given.models, given.parts, options, minutes, report)
    return report


if __name__ == "__main__":
    main()
