"""Memory and time of the backbones, beside timm and torchvision: writes the sections "Backbones" of RESULTS.md.

    python -m benchmarks.backbones [--models resnet50 ...] [--parts training] [--pairs 15] [--batch 8] [--quick]

What is kept for backward is counted exactly: every storage that autograd saves, once, but for image, parameters and
buffers. Peak memory is measured in a fresh process each. Times are taken in turn (A B C A B C ...), a ratio is formed
within each round, and its median and quartiles over the rounds are given: on a shared machine only such ratios count.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.results import machine, write_section
from finetune.backbones import build
from finetune.backbones.folding import fold_batch_norm

ROOT = Path(__file__).resolve().parents[1]
SIZE = 224
TRAINED = ("timm", "torchvision", "standard", "lean", "minimal")


def network(kind: str, name: str) -> nn.Module:
    """timm's, torchvision's, or ours with one of the ways of spending memory; random weights, channels last."""
    torch.manual_seed(0)
    if kind == "timm":
        net = timm.create_model(name)
    elif kind == "torchvision":
        net = torchvision.models.get_model(name, weights=None)
    else:
        net = build(name, memory=kind)
    return net.train().to(memory_format=torch.channels_last)


def kinds(name: str) -> list[str]:
    known = {"timm": timm.is_model(name), "torchvision": name in torchvision.models.list_models()}
    return [kind for kind in TRAINED if known.get(kind, True)]


def batch(images: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(10, (images,), generator=generator)


def step(net: nn.Module, x: Tensor, target: Tensor) -> None:
    net.zero_grad()
    nn.functional.cross_entropy(net(x), target).backward()


def kept(net: nn.Module, images: int = 2) -> float:
    """MiB per image that autograd keeps of a forward pass."""
    x, _ = batch(images)
    own = {t.untyped_storage().data_ptr() for t in [x, *net.parameters(), *net.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)
    del y
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own) / 2**20 / images


def status(field: str) -> float:
    """MiB, of this process, as the kernel counts: VmRSS now, VmHWM at most so far."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024  # type: ignore[index]


def extra_memory(kind: str, name: str, images: int) -> float:
    """MiB by which one training step raises the peak, after a small one that loads whatever loads late."""
    net = network(kind, name)
    step(net, *batch(2, 64))
    x, target = batch(images)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    step(net, x, target)
    return status("VmHWM") - before


def in_fresh_process(kind: str, name: str, images: int) -> float | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.backbones", "--peak", kind, name, "--batch", str(images)]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


class Clock:
    """Seconds of several ways to do the same, taken in turn: by the clock on the wall, and of processor time."""

    def __init__(self, ways: dict[str, Callable[[], object]], rounds: int):
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for way in ways.values():
            way()  # the first time is never like the others
        for turn in range(rounds):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                wall, processor = time.perf_counter(), time.process_time()
                ways[name]()
                self.seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))

    def ratio(self, name: str, to: str) -> str:
        """Median and quartiles by the wall clock, and the median of processor time."""
        pairs = list(zip(self.seconds[name], self.seconds[to], strict=True))
        wall, processor = ([a[i] / b[i] for a, b in pairs] for i in (0, 1))
        low, _, high = statistics.quantiles(wall, n=4)
        return f"{statistics.median(wall):.2f} [{low:.2f}-{high:.2f}] / {statistics.median(processor):.2f}"


def training_rows(name: str, rounds: int, images: int) -> Iterable[str]:
    nets = {kind: network(kind, name) for kind in kinds(name)}
    x, target = batch(images)
    reference = "timm" if "timm" in nets else "standard"
    clock = Clock({kind: (lambda net=net: step(net, x, target)) for kind, net in nets.items()}, rounds)
    for kind, net in nets.items():
        peak = in_fresh_process(kind, name, images)
        yield row(name, kind, f"{kept(net):.1f}", "" if peak is None else f"{peak:.0f}", clock.ratio(kind, reference))


@torch.inference_mode()
def inference_row(name: str, rounds: int, images: int) -> str:
    """How many times faster than timm in its default layout; without timm, than our standard network."""
    ours = build(name).eval()
    theirs = timm.create_model(name).eval() if timm.is_model(name) else build(name).eval()
    ours.load_state_dict(theirs.state_dict())
    folded = fold_batch_norm(ours)
    last, _ = batch(images)
    default = last.contiguous()
    error = (folded(last) - theirs(default)).norm() / theirs(default).norm()
    ours = ours.to(memory_format=torch.channels_last)
    # in pairs: whoever comes behind a network that frees other sizes of memory is slower, by up to 6 %
    pairs = [{"timm": lambda: theirs(default), "ours": way} for way in (lambda: ours(last), lambda: folded(last))]
    return row(name, *(Clock(pair, rounds).ratio("timm", "ours") for pair in pairs), f"{error:.0e}")


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def training(models: list[str], rounds: int, images: int) -> list[str]:
    lines = [
        "What autograd keeps, by how much one step raises the peak of a fresh process, and the step's time over timm's",
        "channels last, in pairs: median [quartiles] by the wall clock / median of processor time.",
        "",
        row("name", "training", "kept, MiB per image", "peak, MiB", "time over timm"),
        row(*["---"] * 5),
    ]
    for name in models:
        for line in training_rows(name, rounds, images):
            print(line, flush=True)
            lines.append(line)
    return lines


def inference(models: list[str], rounds: int, images: int) -> list[str]:
    lines = [
        "How many times faster than timm in its default (contiguous) layout, in pairs: median [quartiles] by the wall",
        "clock / median of processor time; and the relative difference of the folded network's logits to timm's.",
        "",
        row("name", "ours, channels last", "folded, channels last", "difference"),
        row(*["---"] * 4),
    ]
    for name in models:
        lines.append(inference_row(name, rounds, images))
        print(lines[-1], flush=True)
    return lines


SECTIONS = {"training": ("Backbones, training", training), "inference": ("Backbones, inference", inference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "densenet121"])
    parser.add_argument("--parts", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--pairs", type=int, default=15, help="rounds of timing")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="three rounds, batch 2; prints, writes nothing")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(extra_memory(*options.peak, options.batch)))
        return
    rounds, images = (3, 2) if options.quick else (options.pairs, options.batch)
    sizes = f"--models {' '.join(options.models)} --pairs {rounds} --batch {images}"
    for part in options.parts:
        title, measure = SECTIONS[part]
        lines = measure(options.models, rounds, images)
        settings = (
            f"float32, {SIZE} px, batch {images}, {rounds} rounds, seed 0; load {os.getloadavg()[0]:.1f} at the end"
        )
        if not options.quick:
            write_section(
                title,
                "\n".join(
                    [
                        f"`python -m benchmarks.backbones --parts {part} {sizes}`",
                        "",
                        *lines,
                        "",
                        f"{machine()}; {settings}.",
                    ]
                ),
            )


if __name__ == "__main__":
    main()
