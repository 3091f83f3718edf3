"""The training of a fit: the network with its weights, the LightningModule around it, and Lightning's Trainer."""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy

from finetune import weights as weight_files
from finetune.config import build
from finetune.config.settings import Settings, TrainerSettings
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError, Terminated
from finetune.files import resume_word
from finetune.model_file import Model
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.steps import prepare
from finetune.steps.distillation import make_objective
from finetune.steps.task import Task
from finetune.training import ending
from finetune.training.averaging import TRAINED
from finetune.training.callbacks import Checkpoint, MetricsTable, PrintEpoch
from finetune.training.failures import explained
from finetune.training.frozen import FrozenActivations
from finetune.training.launch import ranks
from finetune.training.launch.cluster import Cluster
from finetune.training.module import FineTuning
from finetune.training.plan_table import plan_table


@dataclass(frozen=True)
class FitResult:
    """The result of a fit: the score of its best epoch on val."""

    run: Path
    monitor: str
    """The score that chose the epoch, such as val/auroc."""
    score: float | None
    """None where no epoch was validated."""
    epoch: int | None
    """Counted from 0."""


def check_batches(trainer: TrainerSettings, batch_size: int, table: SampleTable) -> None:
    """Check that a limit given as a share of the batches is at least one batch."""
    n_ranks = ranks.check(trainer.arguments)
    for key, split, num_parts in (("limit_train_batches", "train", 1), ("limit_val_batches", "val", n_ranks)):
        share = trainer.arguments[key]
        batches = math.ceil(math.ceil(len(table.rows(split)) / batch_size) / num_parts)
        if isinstance(share, float) and batches and int(share * batches) == 0:
            raise FinetuneError(
                f"trainer.{key}={share} of {batches} batch(es) is less than one. Give a number of batches, or at least "
                f"{1 / batches:.3g}."
            )


def make_network(
    settings: Settings, num_outputs: int, say: prepare.Say
) -> tuple[NetworkSpec, Network, Preprocessing | None, dict[str, Any]]:
    """The network with its weights, their preprocessing (None for random weights), and a report of their origin.

    Raises:
        FinetuneError: the weights do not fit, or leave a part random that no phase of finetuning trains.
    """
    L.seed_everything(settings.seed, verbose=False)
    spec = build.network_spec(settings, num_outputs)
    network = spec.build()
    weights = settings.backbone.weights
    if weights in (None, "none"):
        say(f"{spec.backbone} starts from RANDOM weights (backbone.weights=none).")
        if frozen := build.plan(settings).never_trained(list(network.parts()), network.new_parts):
            say(
                f"WARNING: no phase of finetuning trains {', '.join(frozen)}: the head learns from RANDOM features. "
                "Use pretrained weights (backbone.weights=default), or finetuning=full."
            )
        return spec, network, None, {"source": None, "random": True}
    loaded = weight_files.load_network(network, spec.backbone, weights)
    plan, epochs = build.plan(settings), settings.trainer.max_epochs
    plan.check(list(network.parts()), epochs, network.new_parts, loaded.complete_parts)
    beside = " and ".join(part for part in loaded.parts if part != "backbone")
    say(f"{spec.backbone}{f' with its {beside}' if beside else ''} starts from {loaded}.")
    for sentence in loaded.notes:
        say(sentence)
    pretrained, size = loaded.preprocessing, settings.data.image_size
    if pretrained is not None and pretrained.image_size != size:
        say(f"These weights were trained at {pretrained.image_size} px, images are read at data.image_size={size}.")
    report = loaded.to_dict()
    report["used"] = len(loaded.used)
    return spec, network, pretrained, {**report, "random": False}


def make_module(
    settings: Settings, task: Task, network: Network, data: ImageData, teacher: Model | None = None
) -> FineTuning:
    """The LightningModule: network, objective, optimizer, schedule and plan together."""
    network.to(memory_format=torch.channels_last)
    if settings.compile:
        network.compile()
    return FineTuning(
        network,
        make_objective(settings, task, data.table, data.rows("train"), data.preprocessing, teacher),
        build.optimizer(settings),
        build.schedule(settings),
        build.plan(settings),
        seed=settings.seed,
        max_steps=settings.trainer.max_steps,
        config=settings.resolved,
    )


def train(
    settings: Settings,
    run: RunFolder,
    task: Task,
    network: Network,
    data: ImageData,
    say: prepare.Say,
    place: ranks.Place,
    teacher: Model | None = None,
    more_callbacks: Sequence[Callback] = (),
    hint: str | None = None,
) -> FitResult:
    """Fit with Lightning, from the last checkpoint if there is one, and load the best epoch's weights.

    Args:
        more_callbacks: of the job, besides those of the configuration.
        hint: what is printed when the training is stopped by hand; by default how to resume the run.
    """
    hint = hint or f"Resume with: python -m finetune {resume_word(run.path)}"
    module = make_module(settings, task, network, data, teacher)
    monitor, higher_is_better = module.objective.monitor, module.objective.higher_is_better
    for sentence in [*module.objective.notes, *plan_table(module, settings.trainer.max_epochs)]:
        say(sentence)
    if data.progressive is not None:
        say(data.progressive.sentence(data.preprocessing.image_size))
    metrics = MetricsTable(run.metrics)
    keep_all = settings.callbacks.keep_all_checkpoints
    checkpoint = Checkpoint(run.checkpoints, monitor, higher_is_better=higher_is_better, keep_all=keep_all)
    averaging = build.averaging(settings)
    if averaging is not None:
        say(averaging.note(network))
    callbacks = [
        *([averaging] if averaging is not None else []),
        metrics,
        PrintEpoch(metrics),
        checkpoint,
        *build.extra_callbacks(settings, monitor, higher_is_better=higher_is_better),
        *more_callbacks,
    ]
    arguments = settings.trainer.set_arguments
    end = ending.Ending(arguments.pop("max_steps"), arguments.pop("max_time", None))
    callbacks += end.callbacks()
    arguments["enable_progress_bar"] = arguments["enable_progress_bar"] and sys.stdout.isatty()
    if arguments["enable_progress_bar"]:
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks.append(RichProgressBar())
    if place.size > 1:
        arguments["strategy"] = DDPStrategy(find_unused_parameters=module.parts_change())
        learning = any(state.norms in ("train", "stats") for state in module.states_in(0).values())
        if learning and not settings.trainer.sync_batchnorm:
            say(f"Batch norms that train use the statistics of one process's part of a batch (1/{place.size} of it).")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, and facts that the lines of epochs contain
    trainer = L.Trainer(
        default_root_dir=run.path,
        # a logger of another rank would open the same files and databases
        logger=build.loggers(settings, run.path) if place.rank == 0 else [DummyLogger() for _ in settings.logger or {}],
        callbacks=callbacks,
        plugins=[Cluster(place)],
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **arguments,
    )
    frozen = frozen_activations(settings, module, data, say)
    data.activations = frozen if frozen.ranges else None
    start = ending.resume_point(run.checkpoints)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # of lightning, in each fit
    try:
        with explained(settings.resolved, run, hint):
            trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except Terminated:
        print(f"stopped by SIGTERM. {hint}", file=sys.stderr)
        raise
    except SystemExit:
        if trainer.interrupted:
            print(f"stopped. {hint}", file=sys.stderr)
            raise SystemExit(130) from None
        raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    if place.rank == 0:
        frozen.remove()
    if early_stop := end.sentence(trainer):
        say(early_stop)
    trainer.strategy.barrier()  # the first rank has written the checkpoint that all read next
    weights = load_best(network, run.checkpoints)
    if trainer.is_global_zero and checkpoint.best_epoch is not None:
        best = {**checkpoint.best(), "weights": weights}
        run.note(best=best, processes=place.size, threads=torch.get_num_threads())
    return FitResult(run.path, monitor, checkpoint.best_score, checkpoint.best_epoch)


def frozen_activations(settings: Settings, module: FineTuning, data: ImageData, say: prepare.Say) -> FrozenActivations:
    """The store of the activations of frozen parts, beside the decoded images; off where nothing is to be cached."""
    mode, cache = settings.frozen_cache, settings.data.cache
    facts = {name: settings.resolved.get(name) for name in ("backbone", "neck", "head", "transforms", "seed")}
    facts["backbone"] = {key: value for key, value in dict(facts["backbone"] or {}).items() if key != "weights"}
    facts["precision"] = settings.trainer.precision
    return FrozenActivations(
        module,
        data,
        settings.trainer.max_epochs,
        mode="off" if cache == "off" and mode == "auto" else mode,
        averaged=bool(settings.averaging),
        facts=facts,
        directory=None if cache in ("auto", "off") else Path(cache).expanduser(),
        say=say,
    )


def load_best(network: Network, folder: Path) -> str:
    """The best epoch's weights in 32 bits, every key of them; the last epoch's where none was validated.

    Returns what they are: "trained", or the average "ema" or "swa".
    """
    path = next((folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None)
    if path is None:
        raise FinetuneError(f"{folder} holds no checkpoint: nothing was trained.")
    network.float()  # trainer.precision=64-true, bf16-true and 16-true change it
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = stored["state_dict"]
    prefix = "network."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
    return str(stored.get("weights", TRAINED))
