"""Averages of the weights over a training: validation, the monitor and the checkpoints' `state_dict` use the average.

Lightning's WeightAveraging (2.6) is not used: it averages the epoch's last weights after their validation, so that
other weights are saved than were validated; it has no warm-up, recomputes no batch norms and copies the whole module.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from finetune.errors import FinetuneError
from finetune.training import parts as part_tools
from finetune.training.norms import recompute_statistics

TRAINED = "trained"
"""The entry `weights` of a checkpoint whose `state_dict` holds no average."""
PREFIX = "network."
MIB = 2**20


class Averaging(Callback):
    """Keeps an average of a network's tensors, of 32 bits or more, and validates it instead of the trained weights.

    A part that has been frozen so far has an average equal to its weights, to the last bit. Integers are copied.
    A checkpoint has the average in `state_dict`, the trained weights in `averaging`, and in `weights` what
    `state_dict` holds: "trained", "ema" or "swa". It comes before the other callbacks of a trainer.
    """

    name: str

    def __init__(self) -> None:
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}

    @property
    def holds(self) -> str:
        """What the average is: "trained" as long as it equals the trained weights."""
        return self.name if self.updates else TRAINED

    def note(self, network: nn.Module) -> str:
        """A sentence on the memory that averaging takes."""
        mib = sum(value.numel() * max(value.element_size(), 4) for value in network.state_dict().values()) / MIB
        return (
            f"averaging={self.name} keeps a second copy of the network ({mib:,.1f} MiB), and a third one during "
            "validations. Scores of epochs, best.ckpt and the model are of the averaged weights."
        )

    def check(self, max_epochs: int, max_steps: int = -1) -> None:
        """Raise a FinetuneError where a training of this length leaves nothing to average."""

    def update(self, share: float) -> None:
        """Move the average towards the current weights by `share` of the difference."""
        averaged = [name for name, value in self.average.items() if value.is_floating_point()]
        old = [self.average[name] for name in averaged]
        torch._foreach_lerp_(old, [self.live[name].to(self.average[name].dtype) for name in averaged], share)
        for name in self.average.keys() - set(averaged):
            self.average[name].copy_(self.live[name])
        self.updates += 1

    def end_epoch(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Called once or twice at the end of an epoch: before its validation, and before it is saved."""

    # -- hooks -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.live = dict(pl_module.network.state_dict())
        start = self.average or self.live
        self.average = {
            name: start[name].detach().to(value.device, wide(value.dtype), copy=True)
            for name, value in self.live.items()
        }

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.end_epoch(trainer, pl_module)
        if trainer.world_size > 1:  # the first rank's running statistics are those that are saved
            for name, _ in pl_module.network.named_buffers():
                if name in self.average:
                    dist.broadcast(self.average[name], 0)
        self.trained = {name: value.clone() for name, value in self.live.items()}
        copy_into(self.live, self.average)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        copy_into(self.live, self.trained)
        self.trained = {}

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.end_epoch(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        trained = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        checkpoint["averaging"] = {"kind": self.name, "updates": self.updates, TRAINED: trained}
        checkpoint["state_dict"] = {**state, **{PREFIX + name: value for name, value in self.average.items()}}
        checkpoint["weights"] = self.holds

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning has loaded `state_dict` into the network: here it becomes the average."""
        stored = checkpoint["averaging"]
        state = checkpoint["state_dict"]
        self.average = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        self.updates = stored["updates"]
        pl_module.network.load_state_dict(stored[TRAINED], strict=True)


class Ema(Averaging):
    """Exponential moving average of weights and running statistics after each optimizer step.

        average <- d * average + (1 - d) * weights,    d = min(decay, (1 + t) / (10 + t)) after t updates

    The warm-up of d is that of TensorFlow's ExponentialMovingAverage: the random start of a head is soon forgotten.
    Running statistics are averaged as the weights are, not copied: they belong to the weights of their step, and
    would be too new for weights that lag behind by 1 / (1 - d) steps.

    Args:
        decay: at least 0 and below 1.

    Raises:
        FinetuneError: another decay.
    """

    name = "ema"

    def __init__(self, decay: float = 0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise FinetuneError(f"averaging.decay={decay} must be at least 0 and below 1, such as 0.999.")
        self.decay = decay
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self.last_step:  # no step was made within a group of accumulated batches
            self.last_step = trainer.global_step
            self.update(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))


class Swa(Averaging):
    """The mean of the weights at the ends of the last epochs (Izmailov et al., 2018, arXiv 1803.05407).

    Before the first averaged epoch it equals the trained weights. Running statistics of the batch norms that train
    are recomputed for each mean of two or more epochs, over the training images without augmentation.

    Args:
        start: share of the epochs before the first averaged one, at least 0 and below 1.

    Raises:
        FinetuneError: another share.
    """

    name = "swa"

    def __init__(self, start: float = 0.75):
        super().__init__()
        if not 0 <= start < 1:
            raise FinetuneError(f"averaging.start={start} must be at least 0 and below 1, such as 0.75.")
        self.start = start
        self.ended_epoch: int | None = None

    @property
    def holds(self) -> str:
        return self.name if self.updates > 1 else TRAINED

    def first_epoch(self, max_epochs: int) -> int:
        """The first epoch (from 0) whose weights are averaged."""
        return int(self.start * max_epochs)

    def check(self, max_epochs: int, max_steps: int = -1) -> None:
        if max_steps > 0:
            raise FinetuneError(
                f"averaging=swa begins at a share of trainer.max_epochs, which trainer.max_steps={max_steps} may never "
                "reach. Use averaging=ema, or trainer.max_epochs alone."
            )
        if (epochs := max_epochs - self.first_epoch(max_epochs)) < 2:
            raise FinetuneError(
                f"averaging.start={self.start} of trainer.max_epochs={max_epochs} leaves {epochs} epoch to "
                "average, two or more are needed. Begin earlier, train longer, or use averaging=ema."
            )

    def end_epoch(self, trainer: L.Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        if self.ended_epoch == epoch:
            return
        self.ended_epoch = epoch
        if epoch < self.first_epoch(trainer.max_epochs or 0):  # also of a training that was made longer
            copy_into(self.average, self.live)
            self.updates = 0
            return
        self.update(1 / (self.updates + 1))
        if self.updates > 1:
            self.recompute_norms(trainer, pl_module)

    def recompute_norms(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Running statistics of the averaged weights, on all ranks the same; the network is left as it was."""
        norms = part_tools.training_norms(pl_module.parts, pl_module.states())
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.plain_train_loader(rank=trainer.global_rank, world_size=trainer.world_size)
        trained = {name: value.clone() for name, value in self.live.items()}
        copy_into(self.live, self.average)
        recompute_statistics(
            pl_module.network, norms, islice(loader, int(trainer.num_training_batches)), pl_module.device
        )
        copy_into(self.average, self.live, [name for name, _ in pl_module.network.named_buffers()])
        copy_into(self.live, trained)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of an average: in 16 bits a change by 1 / 1000 would be rounded away."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def copy_into(target: dict[str, Tensor], source: dict[str, Tensor], names: list[str] | None = None) -> None:
    """Copy values in place, all of them or those of `names`."""
    for name in target if names is None else [name for name in names if name in target]:
        target[name].copy_(source[name])
