"""Model soups: the mean of the weights of several fits (Wortsman et al., 2022, arXiv 2203.05482)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from finetune import model_file
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError
from finetune.inference import eval_mode
from finetune.model_file import Model
from finetune.network import Network
from finetune.runs import group, known_images
from finetune.runs.folder import RunFolder
from finetune.training.norms import recompute_statistics
from finetune.training.objective import Objective

METHODS = ("greedy", "uniform")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Ingredient:
    """A finished fit."""

    run: RunFolder
    model: Model


def read_ingredients(named: str | Path | Sequence[str | Path]) -> list[Ingredient]:
    """The fits behind `runs=`, after checking that their weights can be averaged.

    Raises:
        FinetuneError: fewer than two, a run that is no fit, or networks, classes, preprocessing or splits that differ.
    """
    ingredients = []
    for path in group.find(named):
        run = RunFolder(path)
        if (job := run.read_config().get("job", "fit")) not in ("fit", "soup"):
            raise FinetuneError(f"runs={path} is of job={job}, which trains no network. Name fits.")
        ingredients.append(Ingredient(run, model_file.load(path)))
    if len(ingredients) < 2:
        raise FinetuneError(f"runs={named} is a single run. Name two or more: runs=[a,b].")
    for other in ingredients[1:]:
        check_same(ingredients[0], other)
    return ingredients


def check_same(first: Ingredient, other: Ingredient) -> None:
    """Compare network, classes, preprocessing, views, and the images of each split."""
    a, b = first.model, other.model
    for what, values in (
        ("task", (a.task, b.task)),
        ("network", (a.spec, b.spec)),
        ("classes", (a.classes, b.classes)),
        ("preprocessing", (a.preprocessing, b.preprocessing)),
        ("evaluation.tta", (list(a.tta), list(b.tta))),
    ):
        if values[0] != values[1]:
            raise FinetuneError(
                f"runs={first.run} and {other.run} have another {what}: {values[0]} and {values[1]}. "
                "A soup needs the same."
            )
    samples = [known_images.samples_of_fit(model) for model in (a, b)]
    for ingredient, table in zip((first, other), samples, strict=True):
        if table is None:
            raise FinetuneError(f"runs={ingredient.run} has no readable samples.csv, so its splits cannot be compared.")
    rows = [set(table.itertuples(index=False, name=None)) for table in samples if table is not None]
    if differing := len(rows[0] ^ rows[1]):
        raise FinetuneError(
            f"runs={first.run} and {other.run} differ in {differing:,} rows of samples.csv (images, patients, splits "
            "or pixels): one would be chosen on images that another was trained on. Use one data.seed and data.fold."
        )


def origin_warnings(ingredients: Sequence[Ingredient]) -> list[str]:
    """Warnings on starting weights whose fine-tuned networks need not lie in one basin of the loss."""
    origins = [ingredient.run.read_environment().get("weights") or {} for ingredient in ingredients]
    if any(origin.get("random") for origin in origins):
        return ["Some of the runs start from random weights: the mean of such networks is seldom any good."]
    if len({(origin.get("source"), origin.get("tag"), origin.get("sha256")) for origin in origins}) > 1:
        return ["The runs start from different weights: the mean of such networks is seldom any good."]
    return []


def mean_of(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of each tensor, exact where all are equal; integers are those of the first."""
    mean = {name: value.clone() for name, value in states[0].items()}
    for number, state in enumerate(states[1:], 2):
        for name, value in mean.items():
            if value.is_floating_point():
                value.add_((state[name] - value) / number)
    return mean


class Kitchen:
    """Scores means of states on val; one network is used for all of them.

    Running statistics that differ between the states are recomputed for their mean, over the training images without
    augmentation; equal ones, as of norms that were frozen, are left.
    """

    def __init__(self, network: Network, objective: Objective, data: ImageData, device: torch.device):
        self.network = network.to(device)
        self.objective = objective
        self.data = data
        self.device = device

    def load_mean(self, states: Sequence[State]) -> None:
        """Put the mean of `states` into the network."""
        self.network.load_state_dict(mean_of(states), strict=True)
        norms = [
            module
            for name, module in self.network.named_modules()
            if isinstance(module, _NormBase)
            and any(
                not torch.equal(state[f"{name}.{statistic}"], states[0][f"{name}.{statistic}"])
                for statistic in ("running_mean", "running_var")
                if f"{name}.{statistic}" in states[0]
                for state in states[1:]
            )
        ]
        recompute_statistics(self.network, norms, self.data.plain_train_loader() if norms else [], self.device)

    @torch.no_grad()
    def score(self, states: Sequence[State]) -> float:
        """The monitor of the mean of `states` on val, signed so that higher is better; -inf where undefined."""
        self.load_mean(states)
        rows: dict[str, list[Tensor]] = {name: [] for name in self.objective.row_names}
        with eval_mode(self.network):
            for batch in self.data.eval_loader("val"):
                batch = move_data_to_device(batch, self.device)
                batch["image"] = batch["image"].contiguous(memory_format=torch.channels_last)
                predicted = self.objective.predict(self.network, batch)
                for name, values in rows.items():
                    values.append(predicted[name].float() if predicted[name].is_floating_point() else predicted[name])
        arrays = {name: torch.cat(values).cpu().numpy() for name, values in rows.items()}
        try:
            value = self.objective.score(arrays)[self.objective.monitor]
        except FloatingPointError:
            return -math.inf
        return -math.inf if math.isnan(value) else value if self.objective.higher_is_better else -value


def cook(ingredients: Sequence[Ingredient], kitchen: Kitchen, method: str) -> dict[str, Any]:
    """Put the soup into the kitchen's network; returns its record for environment.json and the model.

    greedy: the best run first, then each next one if the score on val of the mean with it is not lower (recipe 1 of the
    paper). uniform: all of them.
    """
    states = [{name: value.cpu() for name, value in i.model.network.state_dict().items()} for i in ingredients]
    singles = [kitchen.score([state]) for state in states]
    order = sorted(range(len(states)), key=lambda number: -singles[number])
    best = singles[order[0]]
    uniform = kitchen.score(states)
    chosen, score = order[:1], best
    if method == "uniform":
        chosen, score = list(range(len(states))), uniform
    else:
        for number in order[1:]:
            with_it = kitchen.score([states[n] for n in [*chosen, number]])
            if with_it >= score:
                chosen, score = [*chosen, number], with_it
    kitchen.load_mean([states[number] for number in chosen])
    sign = 1 if kitchen.objective.higher_is_better else -1
    return {
        "method": method,
        "monitor": kitchen.objective.monitor,
        "score": plain(sign * score),
        "best_run": plain(sign * best),
        "uniform": plain(sign * uniform),
        "adds": score > best,
        "ingredients": [
            {
                "path": str(ingredient.run),
                "weights_hash": ingredient.model.weights_hash,
                "score": plain(sign * singles[number]),
                "chosen": number in chosen,
            }
            for number, ingredient in enumerate(ingredients)
        ],
    }


def plain(value: float) -> float | None:
    """None where the score was undefined."""
    return value if math.isfinite(value) else None


def sentence(record: Mapping[str, Any]) -> str:
    """What the soup is made of, and whether it is better on val than its best run."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.4f}"

    chosen = sum(ingredient["chosen"] for ingredient in record["ingredients"])
    text = (
        f"The {record['method']} soup is the mean of {chosen} of {len(record['ingredients'])} runs: "
        f"{record['monitor']} {number(record['score'])} on val, {number(record['best_run'])} of the best run alone, "
        f"{number(record['uniform'])} of the mean of all."
    )
    return text if record["adds"] else f"{text} It adds nothing to the best run."
