"""Values found before a training: the learning rate, and the largest batch that fits.

Both work on copies of the network, with every random state put back, so that the training after them has the bits of
one that was given the values.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng

from finetune.config.settings import FitSettings
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError
from finetune.inference import best_device
from finetune.model_file import Model
from finetune.network import Network
from finetune.steps import training
from finetune.steps.task import Say, Task
from finetune.training import parts as part_tools
from finetune.training.failures import is_out_of_memory
from finetune.training.launch import ranks
from finetune.training.module import FineTuning

STEPS = 100
"""Steps of the search for a rate, one for each rate."""
LOWEST, HIGHEST = 1e-7, 1.0
SMOOTHING = 0.9  # of the running mean of the losses
DIVERGED = 4.0  # times the lowest loss, at which the search ends
SAFETY = 10.0  # the suggestion is the rate of the lowest loss divided by it


@dataclass(frozen=True)
class RateSearch:
    """Rates and smoothed losses of the search, and the rate it suggests."""

    rates: list[float]
    losses: list[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate with the lowest loss, to two digits.

        Raises:
            FinetuneError: the loss never fell.
        """
        best = min(range(len(self.losses)), key=self.losses.__getitem__)
        if best == 0:
            raise FinetuneError(
                "find=lr: the loss fell at no rate. Check labels and images with job=preview, or set optimizer.lr."
            )
        return float(f"{self.rates[best] / SAFETY:.1e}")


def find_values(
    settings: FitSettings,
    task: Task,
    network: Network,
    make_data: Callable[[FitSettings], ImageData],
    say: Say,
    teacher: Model | None = None,
) -> tuple[FitSettings, dict[str, Any]]:
    """The settings with the values that `find` names, and a record of the search.

    Args:
        make_data: the data module of some settings.
    """
    found: dict[str, Any] = {}
    with isolate_rng():
        if "batch_size" in settings.find:
            size = largest_batch(settings, task, network, make_data, teacher=teacher)
            found["batch_size"] = size
            settings = changed(settings, "data", "batch_size", size)
            say(f"find=batch_size: {size} images fit (data.batch_size={size}).")
        if "lr" in settings.find:
            search = search_rate(settings, task, network, make_data(settings), teacher)
            found["lr"] = search.suggestion
            found["curve"] = [[rate, round(loss, 5)] for rate, loss in zip(search.rates, search.losses, strict=True)]
            settings = changed(settings, "optimizer", "lr", search.suggestion)
            say(f"find=lr: optimizer.lr={search.suggestion:g}, from {len(search.rates)} steps at rising rates.")
    return settings, found


def changed(settings: FitSettings, group: str, key: str, value: Any) -> FitSettings:
    """The settings with another value of group.key, also in the resolved configuration, and nothing left to find."""
    resolved = {**settings.resolved, group: {**settings.resolved[group], key: value}, "find": []}
    node = getattr(settings, group)
    node = {**node, key: value} if isinstance(node, dict) else node.model_copy(update={key: value})
    return settings.model_copy(update={group: node, "resolved": resolved})


# -- the learning rate -------------------------------------------------------------------------------------------------


def search_rate(
    settings: FitSettings, task: Task, network: Network, data: ImageData, teacher: Model | None = None
) -> RateSearch:
    """Train a copy for STEPS steps, the rate rising exponentially from LOWEST to HIGHEST; it ends where the loss
    diverges (Smith, 2017: Cyclical learning rates for training neural networks, section 3.3).

    The parts are those of the phase that trains the most parameters, with their relative rates.
    """
    module, epoch = _trained_copy(settings, task, network, data, teacher)
    optimizer = module.configure_optimizers()
    states = module.states_in(epoch)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, batch in zip(range(STEPS), _batches(data), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * states[group["part"]].rate
        loss = _step(settings, module, optimizer, batch)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING ** (number + 1))
        if not math.isfinite(smooth) or (losses and smooth > DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    if not losses:
        raise FinetuneError("find=lr: the first loss is not finite. Check the images with job=preview.")
    return RateSearch(rates, losses)


def _batches(data: ImageData) -> Iterator[dict[str, Any]]:
    """Training batches of epoch 0, 1, ..., without end."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        yield from loader


def _trained_copy(
    settings: FitSettings, task: Task, network: Network, data: ImageData, teacher: Model | None = None
) -> tuple[FineTuning, int]:
    """A copy on its device, as the phase has it that trains the most parameters, and the first epoch of that."""
    device = best_device(settings.trainer.accelerator)
    module = training.make_module(settings, task, copy.deepcopy(network), data, teacher).to(device)
    epoch = _largest_phase(module, settings.trainer.max_epochs)
    part_tools.set_gradients(module.parts, module.states_in(epoch))
    part_tools.set_modes(module.parts, module.states_in(epoch))
    return module, epoch


def _largest_phase(module: FineTuning, max_epochs: int) -> int:
    """The first epoch of the phase that trains the most parameters."""

    def trained(epoch: int) -> int:
        states = module.states_in(epoch)
        return sum(
            p.numel() for part, ms in module.parts.items() if states[part].trainable for m in ms for p in m.parameters()
        )

    starts = [int(phase.epoch) for phase in module.plan.phases.values() if phase.epoch < max(1, max_epochs)]
    return max(sorted(starts), key=trained)


def _step(settings: FitSettings, module: FineTuning, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> float:
    """One optimizer step on a batch; its mean loss."""
    moved = move_data_to_device(batch, module.device)
    precision = str(settings.trainer.precision)
    autocast: Any = contextlib.nullcontext()
    if precision.endswith("mixed"):
        autocast = torch.autocast(module.device.type, torch.bfloat16 if precision.startswith("bf16") else torch.float16)
    with autocast:
        total, count = module.objective.step(module.network, moved)
    loss = total / count.clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


# -- the batch ---------------------------------------------------------------------------------------------------------


def largest_batch(
    settings: FitSettings,
    task: Task,
    network: Network,
    make_data: Callable[[FitSettings], ImageData],
    attempt: Callable[[FitSettings], None] | None = None,
    *,
    teacher: Model | None = None,
) -> int:
    """The largest of data.batch_size times 1, 2, 4 ... whose training step fits on the device; of several, over all.

    Args:
        attempt: one training step with some settings, which may raise what a lack of memory raises.

    Raises:
        FinetuneError: on a CPU, whose memory does not set the batch; or not even data.batch_size fits.
    """
    if attempt is None:
        if best_device(settings.trainer.accelerator).type == "cpu":
            raise FinetuneError(
                "find=batch_size needs a GPU: on a CPU larger batches take proportionally longer, and memory is rarely "
                "what ends them. Set data.batch_size."
            )
        attempt = _attempt(task, network, make_data, teacher)
    processes = ranks.check(settings.trainer.arguments)
    first = size = max(1, settings.data.batch_size // processes)  # on each device
    images = len(make_data(settings).rows("train")) // processes
    fitting = 0
    while size <= max(first, images // 2):
        try:
            attempt(changed(settings, "data", "batch_size", size))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        fitting, size = size, 2 * size
    if not fitting:
        raise FinetuneError(
            f"find=batch_size: data.batch_size={settings.data.batch_size} does not fit already. Begin with a smaller "
            "one, or use backbone.memory=lean."
        )
    return fitting * processes


def _attempt(
    task: Task, network: Network, make_data: Callable[[FitSettings], ImageData], teacher: Model | None
) -> Callable[[FitSettings], None]:
    def attempt(settings: FitSettings) -> None:
        data = make_data(settings)
        try:
            module, _ = _trained_copy(settings, task, network, data, teacher)
            optimizer = module.configure_optimizers()
            for _, batch in zip(range(2), _batches(data), strict=False):  # the second has the optimizer's state
                _step(settings, module, optimizer, batch)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    return attempt
