"""job=preview: audit, first batch, trainable parameters, time and memory of a fit. No weights are kept."""

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from finetune.config import build
from finetune.config.settings import PreviewSettings, ProgressiveSettings
from finetune.data.audit.contact_sheet import write_sheet
from finetune.data.loading.module import ImageData
from finetune.files import write_json_atomic
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, training
from finetune.steps.beginning import begin
from finetune.steps.task import Task
from finetune.training import memory
from finetune.training import parts as part_tools
from finetune.training.launch import ranks
from finetune.training.launch.cluster import Cluster
from finetune.training.module import FineTuning

WARM_UP = 4  # steps before timing starts: the first ones fill caches and queues
MAX_SHOWN = 16  # images of the first batch


def preview(settings: PreviewSettings, run: RunFolder, words: list[str]) -> None:
    """Write audit and batch.png, print trainable parameters per phase, time and memory of an epoch."""
    run.begin(settings.resolved, words)
    say = prepare.make_printer(True)
    if settings.demo:
        prepare.make_demo_images(settings.data, settings.trainer.max_epochs, say)
    begun = begin(settings, say)
    task, network, preprocessing = begun.task, begun.network, begun.preprocessing
    data_settings = settings.data
    warn_only = data_settings.audit.model_copy(update={"on_leak": "warn"})
    lenient = data_settings.model_copy(update={"on_bad": "skip", "audit": warn_only})
    table, images, audit = prepare.decode_and_audit(lenient, begun.table, preprocessing, say, run)
    full_size = data_settings.model_copy(update={"progressive": ProgressiveSettings()})  # time and memory at the end
    augment, mixing = build.augment(settings), build.mixing(settings)
    data = prepare.make_datamodule(full_size, settings.seed, table, images, preprocessing, augment, mixing)
    write_batch(task, data, run.first_batch, preprocessing)
    module = training.make_module(settings, task, network, data, begun.teacher)
    phases = trainable_by_phase(module, settings.trainer.max_epochs)
    for phase in phases:
        say(f"from epoch {phase['epoch']}: {phase['name']} trains {phase['trained']:,} of {phase['all']:,} parameters")
        say("  " + ", ".join(f"{part} {count:,}" for part, count in phase["parts"].items()))
    cost = measure(module, data, settings, run, max(phases, key=lambda phase: phase["trained"])["name"])
    say(cost_sentence(cost, settings.trainer.max_epochs))
    if audit.bad_images and data_settings.on_bad == "stop":
        say(f"A fit would stop here (data.on_bad=stop): {len(audit.bad_images):,} images cannot be read.")
    for leak in audit.leaks if data_settings.audit.on_leak == "stop" else []:
        say(f"A fit would stop here (data.audit.on_leak=stop): {leak.text}")
    write_json_atomic(run.preview, {"learns": phases, "cost": cost, "data": {"hash": table.hash()}})
    say(f"audit, first batch and figures: {run}")


def write_batch(task: Task, data: ImageData, path: Path, preprocessing: Preprocessing) -> None:
    """The first training batch as the network sees it, with the target of each image."""
    batch = next(iter(data.train_dataloader()))
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    images = ((batch["image"][:MAX_SHOWN] * std + mean) * 255).round().clamp(0, 255).byte()  # (N, C, S, S)
    pixels = [image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy() for image in images]
    first = {key: values[:MAX_SHOWN] for key, values in batch.items()}
    captions = task.captions(first, data.table)
    write_sheet(path, pixels, captions, columns=4)


def trainable_by_phase(module: FineTuning, max_epochs: int) -> list[dict[str, Any]]:
    """Per phase of the plan: the number of trainable parameters of each part."""
    parts = list(module.parts)
    result = []
    phases = sorted(module.plan.phases.items(), key=lambda item: item[1].epoch)
    for name, phase in phases:
        if 0 < max_epochs <= phase.epoch:
            continue
        part_tools.set_gradients(module.parts, module.states_in(int(phase.epoch)))
        trainable = {
            part: sum(p.numel() for module in module.parts[part] for p in module.parameters() if p.requires_grad)
            for part in parts
        }
        num_parameters = sum(p.numel() for p in module.network.parameters())
        result.append(
            {
                "name": name,
                "epoch": phase.epoch,
                "parts": trainable,
                "trained": sum(trainable.values()),
                "all": num_parameters,
            }
        )
    return result


class StepTimer(Callback):
    """Start times of training and validation steps, and the end of the last; time between starts includes loading."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.train.append(time.perf_counter())

    def on_train_batch_end(self, *_: Any) -> None:
        self.train_ended = time.perf_counter()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.val.append(time.perf_counter())

    def on_validation_batch_end(self, *_: Any) -> None:
        self.val_ended = time.perf_counter()


def measure(
    module: FineTuning, data: ImageData, settings: PreviewSettings, run: RunFolder, phase: str
) -> dict[str, Any]:
    """Seconds per step and epoch and peak memory, from real steps of a phase of the plan."""
    steps, batches = WARM_UP + settings.steps, len(data.train_dataloader())
    val_batches = -(-len(data.rows("val")) // settings.data.batch_size)
    timer = StepTimer()
    averaging = build.averaging(settings)
    callbacks = [timer] if averaging is None else [averaging, timer]
    arguments = settings.trainer.set_arguments
    arguments |= {"devices": 1, "num_nodes": 1, "max_epochs": 1, "max_steps": -1, "enable_progress_bar": False}
    arguments |= {"limit_train_batches": min(steps, batches), "limit_val_batches": min(WARM_UP, val_batches)}
    module.plan = replace(module.plan, phases={phase: replace(module.plan.phases[phase], epoch=0)})
    trainer = L.Trainer(
        default_root_dir=run.path, logger=False, callbacks=callbacks, use_distributed_sampler=False,
        plugins=[Cluster(ranks.Place())], enable_checkpointing=False, **arguments,
    )  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # of lightning
        trainer.fit(module, datamodule=data)
    step_starts = [*timer.train, timer.train_ended]
    step_seconds = np.diff(step_starts)[min(WARM_UP, len(step_starts) - 2) :]
    val_seconds = np.diff([*timer.val, timer.val_ended]) if timer.val else np.zeros(1)
    mean_seconds = float(np.mean(step_seconds))
    return {
        "seconds_per_step": mean_seconds,
        "steps_per_epoch": batches,
        "seconds_per_epoch": mean_seconds * batches + float(np.median(val_seconds)) * val_batches,
        "peak_memory_mib": memory.peak_mib(),
        "timed_steps": len(step_seconds),
        "device": str(module.device),
    }


def cost_sentence(cost: dict[str, Any], max_epochs: int) -> str:
    """A sentence on time and memory."""
    epoch, whole = cost["seconds_per_epoch"], cost["seconds_per_epoch"] * max_epochs
    return (
        f"about {epoch:,.0f} s per epoch ({cost['steps_per_epoch']:,} steps of {cost['seconds_per_step']:.2f} s and "
        f"the validation), {whole / 60:,.0f} min for {max_epochs} epochs; {cost['peak_memory_mib']:,} MiB at most "
        f"(one process on {cost['device']}, {cost['timed_steps']} steps timed)"
    )
