"""Unsupported settings of the Trainer: an error before any data are read."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from finetune.config.settings import TrainerSettings
from finetune.config.values import check_call
from finetune.errors import FinetuneError, one_of
from finetune.training.launch import ranks
from finetune.training.launch.cluster import Cluster
from finetune.training.launch.process_group import on_gpu

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
SET_BY_RUN = {
    "callbacks": "callbacks.extra takes yours, by name.",
    "default_root_dir": "the run folder is hydra.run.dir.",
    "enable_checkpointing": "a run has its checkpoints; see callbacks.keep_all_checkpoints.",
    "logger": "loggers are a group: logger=tensorboard.",
    "plugins": "processes are trainer.devices and trainer.num_nodes, precision is trainer.precision.",
    "strategy": "trainer.devices and trainer.num_nodes say how many processes share a batch.",
    "use_distributed_sampler": "batches are shared out by data.batch_size.",
    "val_check_interval": "a checkpoint is of a whole epoch and validated there; see trainer.check_val_every_n_epoch.",
}
"""Arguments of the Trainer that the run sets, and what to set instead."""


def check(trainer: TrainerSettings) -> None:
    """Refuse settings that would not end in a trained, validated and evaluated network.

    Raises:
        FinetuneError: naming the key and its value.
    """
    arguments = trainer.arguments
    check_call("trainer", arguments, L.Trainer)
    for key, instead in SET_BY_RUN.items():
        if arguments.get(key) is not None:
            raise FinetuneError(f"trainer.{key}={arguments[key]} cannot be set: {instead}")
    if trainer.accelerator not in ACCELERATORS:
        raise one_of("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    ranks.check(arguments)
    if trainer.sync_batchnorm and not on_gpu(trainer.accelerator):
        raise FinetuneError(
            f"trainer.sync_batchnorm=true with trainer.accelerator={trainer.accelerator} on this machine: torch's "
            "SyncBatchNorm works on GPUs only. Leave it false, and give each process more images (data.batch_size) or "
            "keep the statistics of the weights (finetuning.norms=affine or frozen)."
        )
    if trainer.max_epochs < 1:
        raise FinetuneError(f"trainer.max_epochs={trainer.max_epochs} must be a whole number of 1 or more.")
    if trainer.accumulate_grad_batches < 1:
        raise FinetuneError(f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} must be 1 or more.")
    if trainer.max_steps < 1 and trainer.max_steps != -1:
        raise FinetuneError(f"trainer.max_steps={trainer.max_steps} must be 1 or more, or -1 for no limit.")
    if not isinstance(trainer.max_time, str | Mapping | None):
        raise FinetuneError(f"trainer.max_time={trainer.max_time} must be DD:HH:MM:SS, or {{hours: 1}}.")
    if str(trainer.precision).startswith("transformer-engine"):
        raise FinetuneError(
            f"trainer.precision={trainer.precision} is for transformers, these networks are convolutions. Use "
            "32-true, 64-true, bf16-mixed, 16-mixed, bf16-true or 16-true."
        )
    for key, left in (("limit_train_batches", "nothing to learn"), ("limit_val_batches", "nothing to choose by")):
        if arguments[key] is not None and not arguments[key] > 0:
            raise FinetuneError(
                f"trainer.{key}={arguments[key]} leaves {left}. Give batches (1, 2 ...) or a share (0.5)."
            )
    _build(trainer)


def _build(trainer: TrainerSettings) -> None:
    """Build a Trainer of one process once, for its own checks."""
    aside = ("deterministic", "benchmark", "devices", "num_nodes", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = {key: value for key, value in trainer.set_arguments.items() if key not in aside}
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "devices": 1}
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated when the real one is built
            L.Trainer(**options, enable_model_summary=False, plugins=[Cluster(ranks.Place())])
            time = trainer.max_time
            if time is not None and not (Timer(time).time_remaining() or 0) > 0:
                raise FinetuneError(f"trainer.max_time={time} leaves no time. Give DD:HH:MM:SS.")
    except FinetuneError:
        raise
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise FinetuneError(f"The Trainer refuses these settings: {str(error).strip().splitlines()[0]}") from None
    finally:
        log.setLevel(level)
