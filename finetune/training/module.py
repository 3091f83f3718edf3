"""The one LightningModule: the fine-tuning plan, rates, seeds and exact means over ranks. It knows no task."""

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.network import Network
from finetune.plan import PartState, Plan
from finetune.training import parts as part_tools
from finetune.training.averaging import TRAINED
from finetune.training.launch import ranks
from finetune.training.objective import Objective
from finetune.training.schedules import Schedule
from finetune.training.validation import MeanLoss, ValidationRows

MAX_NAMED = 8
"""Images that an error names."""


class FineTuning(L.LightningModule):
    """Fine-tunes a network on batches {image (N, C, H, W), index (N,), ...} for an objective.

    Args:
        objective: loss and validation scores; it reads the other entries of a batch.
        optimizer: parameter groups -> optimizer; its weight decay excludes norms and biases.
        seed: of dropout, together with epoch, batch and rank.
        max_steps: optimizer steps after which the training is stopped, -1 for no limit; the schedule ends with them.
        config: the resolved configuration as plain types, stored in the checkpoints.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        plan: Plan,
        *,
        seed: int = 0,
        max_steps: int = -1,
        config: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.network = network
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.plan = plan
        self.seed = seed
        self.max_steps = max_steps
        self.save_hyperparameters({"config": config or {}})
        self.train_loss = MeanLoss()
        self.validation = ValidationRows(objective.row_names)
        self.group_labels = torch.zeros((), dtype=torch.int64)  # labels known in the current group, over all ranks
        self.unchecked: list[tuple[int, Tensor, Tensor]] = []  # batch, its rows, its loss
        self.parts, self.new_parts = network.parts(), network.new_parts
        part_tools.check_cover(network, self.parts)

    # -- the one step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> STEP_OUTPUT:
        """The loss whose gradient, added to that of the group's earlier batches, is that of the group's mean loss.

        A group is the `accumulate_grad_batches` micro-batches of one optimizer step, fewer at the end of an epoch.
        Until it is complete its gradient is the mean over the known labels so far, on all ranks.
        """
        with self.network.starting_at(batch.get("start")):  # type: ignore[arg-type]
            total, count = self.objective.step(self.network, batch)
        known = self.sum_over_ranks(count)
        if batch_idx % self.trainer.accumulate_grad_batches:  # Lightning begins a group, without gradients, at 0
            earlier = self.group_labels
            known = known + earlier
            part_tools.scale_gradients(self.network, earlier.to(total.dtype) / known.clamp(min=1).to(total.dtype))
        self.group_labels = known
        # DDP averages gradients over ranks: times their number, divided by all known labels, is the batch's own mean
        loss = total * self.trainer.world_size / known.clamp(min=1)
        self.unchecked.append((batch_idx, batch["index"], total.detach()))
        if self.device.type == "cpu" or len(self.unchecked) == 50:  # a check waits for the GPU
            self.check_losses()
        self.train_loss.update(total, count)
        return loss * self.trainer.accumulate_grad_batches  # Lightning divides by it

    def check_losses(self) -> None:
        """Raise an error that names the first batch whose loss is not finite, and its images."""
        recent, self.unchecked = self.unchecked, []
        if not recent or bool(torch.isfinite(torch.stack([total for *_, total in recent])).all()):
            return
        number, index, total = next(entry for entry in recent if not torch.isfinite(entry[2]))
        table = getattr(getattr(self.trainer, "datamodule", None), "table", None)
        rows = index.tolist()
        names = [str(row) if table is None else str(table.paths[row]) for row in rows[:MAX_NAMED]]
        more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        raise FinetuneError(
            f"The loss is {total.item()} in epoch {self.current_epoch}, batch {number}: {', '.join(names)}{more}. "
            "Lower optimizer.lr, set trainer.gradient_clip_val=1, or use trainer.precision=32-true. Checkpoints of "
            "earlier epochs are kept."
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with self.network.starting_at(batch.get("start")):  # type: ignore[arg-type]
            self.validation.update(batch["index"], self.objective.predict(self.network, batch))

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault("weights", TRAINED)

    # -- the plan, applied at every point where something could undo it --------------------------------------------

    def states(self) -> dict[str, PartState]:
        return self.states_in(self.current_epoch)

    def states_in(self, epoch: int) -> dict[str, PartState]:
        """What each part does in `epoch`."""
        return self.plan.at(epoch, list(self.parts), self.new_parts)

    def parts_change(self) -> bool:
        """Whether any part is frozen in some epochs and trained in others."""
        return self.plan.changes(list(self.parts), self.new_parts)

    def train(self, mode: bool = True) -> "FineTuning":
        """Sets the usual modes, then applies the plan's: frozen norms stay in eval mode."""
        super().train(mode)
        if mode and self._trainer is not None:
            part_tools.set_modes(self.parts, self.states())
        return self

    def setup(self, stage: str) -> None:
        if stage == "fit" and not self.parts_change():
            # before DDP looks at them; where parts change, DDP looks for unused parameters instead
            part_tools.set_gradients(self.parts, self.states())

    def on_train_epoch_start(self) -> None:
        part_tools.set_gradients(self.parts, self.states())
        part_tools.set_modes(self.parts, self.states())

    def on_validation_epoch_start(self) -> None:
        self.check_losses()
        if self.trainer.world_size > 1:
            ranks.assert_ranks_identical(self.network)

    # -- logging -------------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        self.check_losses()
        self.log("train/loss", self.train_loss.compute(), sync_dist=True)
        self.train_loss.reset()

    def on_validation_epoch_end(self) -> None:
        rows = self.validation.compute()
        self.validation.reset()
        try:
            scores = self.objective.score(rows)
        except FloatingPointError:
            raise FinetuneError(
                f"The network's outputs are not finite after epoch {self.current_epoch}. Lower optimizer.lr, set "
                "trainer.gradient_clip_val=1, or use trainer.precision=32-true."
            ) from None
        for name in self.objective.scores:
            self.log(name, scores[name], prog_bar=True, sync_dist=True)

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        defaults = self.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults
        groups = part_tools.parameter_groups(self.parts, defaults.get("weight_decay", 0.0))
        options = {"base_lr": defaults["lr"]}
        if self.device.type == "cpu" and "fused" in defaults and defaults["fused"] is None:
            options["fused"] = True  # torch's default on a CPU, tensor by tensor, takes as long as the network
        return self.optimizer([{**group, **options} for group in groups])

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Sets learning rates from the step number and dropout's seed from (seed, epoch, batch, rank).

        Both are recomputed at each step, so nothing can be stale after a resume. Once per epoch would not do for the
        seed: a loader draws from torch's generator when it begins, which is earlier after a resume.
        """
        place = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        states = self.states()
        total = int(self.trainer.estimated_stepping_batches)
        total = total if self.max_steps < 0 else min(total, self.max_steps)
        factor = self.schedule.factor(self.global_step, total)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["base_lr"] * factor * states[group["part"]].rate
