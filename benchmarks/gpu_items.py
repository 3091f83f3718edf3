"""What the benchmark of a GPU measures of backbones: training steps, compiled ones, the largest batch, inference."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.backbones import kinds, network
from benchmarks.gpu_clock import Clock, fits, in_words, largest, peak, release
from benchmarks.gpu_report import Report
from finetune.backbones.folding import fold_batch_norm

BATCHES = (256, 128, 64, 32, 16, 8)


@dataclass(frozen=True)
class Options:
    """How long and how large. `seconds` are for each item, `size` is the side of an image in pixels."""

    device: torch.device
    seconds: float
    size: int = 224
    batches: tuple[int, ...] = BATCHES
    backend: str = "inductor"
    warm_up: int = 3
    workers: int = 8
    fit_steps: int = 60


class TrainingStep:
    """A network with its optimizer; a call is one training step on a batch that stays on the device.

    Autocast to bfloat16, cross-entropy, AdamW in one kernel. Gradients are freed at the end.
    """

    def __init__(self, kind: str, name: str, options: Options):
        self.device = options.device
        self.net = network(kind, name).to(options.device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=True)

    def on(self, x: Tensor, target: Tensor) -> Callable[[], None]:
        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(self.net(x), target)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def compile(self, backend: str) -> "TrainingStep":
        self.net.compile(backend=backend)
        return self


def on_device(images: int, options: Options) -> tuple[Tensor, Tensor]:
    """A batch that was made on the device: noise, channels last, and numbers of classes."""
    generator = torch.Generator(options.device).manual_seed(0)
    noise = torch.empty(images, 3, options.size, options.size, device=options.device, memory_format=torch.channels_last)
    target = torch.randint(10, (images,), generator=generator, device=options.device)
    return noise.normal_(generator=generator), target


def batch_that_fits(name: str, options: Options) -> int:
    """The first of `options.batches` with which timm's network trains; 0 where none does."""
    timms = TrainingStep("timm", name, options)
    return next((n for n in options.batches if fits(timms.on(*on_device(n, options)), options.device)), 0)


def training(name: str, options: Options, report: Report) -> None:
    """Eager steps of all networks in turn, and the memory of each."""
    images = batch_that_fits(name, options)
    if not images:
        report.note(f"{name}: no batch of {options.batches[-1]} fits.")
        return
    x, target = on_device(images, options)
    ways = {kind: TrainingStep(kind, name, options).on(x, target) for kind in kinds(name)}
    clock = Clock(ways, options.device, options.seconds, options.warm_up)
    peaks = {kind: peak(way, options.device) for kind, way in ways.items()}
    for kind in ways:
        ratio = clock.ratio(kind, "timm")
        mib, of_timm = peaks[kind], peaks["timm"]
        share = None if mib is None or of_timm is None else mib / of_timm
        report.add(
            "training", name, kind, images, f"{images / clock.median(kind):.0f}", in_words(ratio),
            None if mib is None else f"{mib:.0f}", None if share is None else f"{share:.2f}",
            figures={f"{name} {kind} time": ratio[0], f"{name} {kind} peak": share},
        )  # fmt: skip


def compiled(name: str, options: Options, report: Report) -> None:
    """Compiled steps of timm's network and of ours; lean and minimal parts are never compiled as a whole."""
    images = batch_that_fits(name, options)
    if not images:
        return
    x, target = on_device(images, options)
    torch.compiler.reset()
    ways = {"timm": TrainingStep("timm", name, options).on(x, target)}
    for kind in ("timm", "standard"):
        ways[f"{kind}, compiled"] = TrainingStep(kind, name, options).compile(options.backend).on(x, target)
    clock = Clock(ways, options.device, options.seconds, options.warm_up)
    for way in ways:
        to_compiled = clock.ratio(way, "timm, compiled")
        report.add(
            "compiled", name, way, images, f"{images / clock.median(way):.0f}", in_words(clock.ratio(way, "timm")),
            in_words(to_compiled),
            figures={f"{name} compiled time": to_compiled[0]} if way.startswith("standard") else None,
        )  # fmt: skip


def largest_batches(name: str, options: Options, report: Report) -> None:
    """The largest batch of each network, each tried with one step on an otherwise empty device."""
    if options.device.type != "cuda":
        report.note(f"{name}: the largest batch is for CUDA alone.")
        return
    of_timm = 0
    for kind in kinds(name):
        trained = TrainingStep(kind, name, options)

        def fit(images: int, trained: TrainingStep = trained) -> bool:
            return fits(lambda: trained.on(*on_device(images, options))(), options.device)

        most = largest(fit, options.batches[-1])
        of_timm = of_timm or most
        report.add("largest", name, kind, most, f"{most / of_timm:.2f}" if of_timm else "")
        del trained, fit
        release()


def inference(name: str, options: Options, report: Report) -> None:
    """Eager, folded and compiled networks in float32 and bfloat16."""
    images = options.batches[0]
    theirs, ours = (network(kind, name).to(options.device).eval() for kind in ("timm", "standard"))
    ours.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        x, _ = on_device(images, options)
        truth = theirs(x)
        for precision, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            torch.compiler.reset()
            nets: dict[str, nn.Module] = {"timm": theirs, "ours": ours, "ours, folded": fold_batch_norm(ours)}
            if dtype is not None:
                nets["ours, folded, compiled"] = fold_batch_norm(ours)
                nets["ours, folded, compiled"].compile(backend=options.backend)
            ways = {way: predicting(net, x, dtype, options.device) for way, net in nets.items()}
            clock = Clock(ways, options.device, options.seconds / 2, options.warm_up)
            for way in ways:
                difference = (ways[way]().float() - truth).norm() / truth.norm()
                report.add(
                    "inference", name, precision, way, images, f"{images / clock.median(way):.0f}",
                    in_words(clock.ratio("timm", way)), f"{difference:.0e}",
                )  # fmt: skip


def predicting(net: nn.Module, x: Tensor, dtype: torch.dtype | None, device: torch.device) -> Callable[[], Tensor]:
    def predict() -> Tensor:
        context: AbstractContextManager = nullcontext() if dtype is None else torch.autocast(device.type, dtype)
        with context:
            return net(x)

    return predict
