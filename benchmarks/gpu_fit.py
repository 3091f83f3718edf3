"""A fit on a GPU from decoded images, against the bare training step: how much of the time the device waits."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image

from benchmarks.gpu_clock import Clock, fits, release, synchronize
from benchmarks.gpu_items import Options
from benchmarks.gpu_report import Report
from finetune.config import build, compose
from finetune.config.settings import Settings, parse
from finetune.data.cache.image_cache import ImageCache
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.preprocessing import Preprocessing
from finetune.steps import training
from finetune.training.module import FineTuning

FILES = 1024  # images on the disk, each of which the table has several times
WAITING = "[_TrainingEpochLoop].train_dataloader_next"
"""Lightning's name of the time between the end of a step and the next batch."""


class Repeated:
    """A cache of which every image occurs several times: row r is the image r modulo their number."""

    def __init__(self, cache: ImageCache, times: int):
        self.cache, self.number = cache, len(cache.digests)
        self.bad: dict[int, str] = {}
        self.masks = None
        self.sizes, self.digests = np.tile(cache.sizes, (times, 1)), cache.digests * times

    def __getitem__(self, row: int) -> np.ndarray:
        return self.cache[row % self.number]

    def take(self, rows: Any) -> np.ndarray:
        return self.cache.take([int(row) % self.number for row in rows])


class Span(L.Callback):
    """Seconds from the start of step `first` to the end of the last, all work of the device included."""

    def __init__(self, first: int):
        self.first, self.steps, self.seconds = first, 0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, number: int) -> None:
        if number == self.first:
            synchronize(module.device)
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, number: int) -> None:
        if number == trainer.num_training_batches - 1:
            synchronize(module.device)
            self.seconds, self.steps = time.perf_counter() - self.start, number - self.first + 1


class Durations(SimpleProfiler):
    """Lightning's profiler, that prints nothing."""

    def describe(self) -> None:
        pass


def draw(folder: Path, number: int, size: int) -> list[str]:
    """Smooth noise as JPEGs, a bit larger than the network's input; their names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    side = size * 8 // 7
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return [f"{i}.jpg" for i in range(number)]


def image_data(folder: Path, settings: Settings, rows: int, options: Options) -> ImageData:
    """Generated images, decoded into a cache, as a data module of `rows` training images."""
    names = draw(folder / "images", min(FILES, rows), options.size)
    times = -(-rows // len(names))
    target = np.random.default_rng(0).integers(0, 2, (len(names), 2)).astype(float)
    frame = pd.DataFrame(
        {"path": names, "patient": names, "split": "train", "target_a": target[:, 0], "target_b": target[:, 1]}
    )
    table = SampleTable(frame, ["a", "b"], "multilabel", folder / "images", "generated", [], True, [])
    preprocessing = Preprocessing(image_size=options.size)
    cache = ImageCache.build(table, preprocessing, folder / "cache", workers=max(1, options.workers))
    table.frame = pd.concat([frame] * times, ignore_index=True)[:rows]
    return ImageData(
        table,
        Repeated(cache, times),  # type: ignore[arg-type]
        preprocessing,
        build.augment(settings),
        batch_size=settings.data.batch_size,
        num_workers=options.workers,
    )


def bare_step(module: FineTuning, data: ImageData, images: int, device: torch.device) -> Any:
    """A function that makes one training step of the module on a batch that stays on the device."""
    batch = data.train_dataset.__getitems__([(0, row) for row in range(images)])
    batch = {key: value.to(device) for key, value in batch.items()}
    batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
    module.to(device).train()
    optimizer = module.configure_optimizers()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            total, count = module.objective.step(module.network, batch)
        (total / count.clamp(min=1)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def fit(name: str, options: Options, report: Report) -> None:
    """One epoch of `fit_steps` steps through ImageData and Lightning, and the bare step of the same module."""
    accelerator = "gpu" if options.device.type == "cuda" else "cpu"
    words = [f"backbone={name}", "backbone.weights=none", "data=folder", "data.root=generated", "transforms=light"]
    words += ["trainer.max_epochs=1", f"data.image_size={options.size}"]
    with tempfile.TemporaryDirectory() as place:
        settings = parse(compose.plain(compose.compose(words)))
        data = image_data(Path(place), settings, options.fit_steps * options.batches[0], options)
        _, network, *_ = training.make_network(settings, 2, lambda sentence: None)
        module = training.make_module(settings, build.task(settings), network, data)
        steps = ((n, bare_step(module, data, n, options.device)) for n in options.batches)
        images, step = next(((n, step) for n, step in steps if fits(step, options.device)), (0, None))
        if step is None:
            report.note(f"{name}: no batch of {options.batches[-1]} fits, no fit was measured.")
            return
        bare = images / Clock({"bare": step}, options.device, options.seconds / 3, options.warm_up).median("bare")
        del step, steps
        release()
        data.batch_size = images
        span, durations = Span(min(10, options.fit_steps // 2)), Durations()
        trainer = L.Trainer(
            default_root_dir=place, accelerator=accelerator, devices=1, max_epochs=1, precision="bf16-mixed",
            limit_train_batches=options.fit_steps, limit_val_batches=0, callbacks=[span], profiler=durations,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's hints on loaders and loggers
            trainer.fit(module, data)
    waited = sum(durations.recorded_durations[WAITING][span.first + 1 : span.first + span.steps])
    speed = images * span.steps / span.seconds
    report.add(
        "fit", name, images, options.workers, f"{speed:.0f}", f"{bare:.0f}", f"{speed / bare:.2f}",
        f"{waited / span.seconds:.0%}", figures={f"{name} fit share": speed / bare},
    )  # fmt: skip
