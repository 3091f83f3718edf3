"""Does a heat map depend on what the network learned? The weight randomisation test of Adebayo et al., 2018 ("Sanity
Checks for Saliency Maps").

From the head down the parts of a copy are made anew at random, each on top of those before it, and the maps of the same
pictures and classes are compared with those of the trained network by the rank correlation of their pixels. A map that
stays the same whatever the weights are shows the picture (its edges, its middle), not what the network knows.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from finetune.explanations.maps import heat_of
from finetune.network import Network

ALIKE = 0.5  # a rule of thumb: above it maps of random weights are still recognisably those of the trained network


def randomisation(
    network: Network, images: Tensor, classes: Tensor, method: str = "grad_cam", *, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """{method, images, alike, stages: [{part, rho, images, constant}], sentence}, in the order of randomising.

    `rho` is the mean of Spearman's correlation over the pictures whose maps both vary; a map that is the same
    everywhere (Grad-CAM where nothing speaks for the class) has no correlation and counts in `constant`. It is None
    where no picture is left. `alike` says whether the maps survive all weights being random; None: not known.
    """
    trained = heat_of(network, images, classes, method, **options).numpy()
    changed = copy.deepcopy(network)
    stages: list[dict[str, Any]] = []
    for number, (part, modules) in enumerate(reversed(changed.parts().items())):
        randomise(modules, seed + number)
        found = correlations(trained, heat_of(changed, images, classes, method, **options).numpy())
        known = found[~np.isnan(found)]
        stages.append(
            {
                "part": part,
                "rho": float(known.mean()) if len(known) else None,
                "images": len(known),
                "constant": len(found) - len(known),
            }
        )
    last = stages[-1]["rho"]
    alike = None if last is None else abs(last) > ALIKE
    told = {"method": method, "images": len(images), "alike": alike, "stages": stages}
    return {**told, "sentence": in_a_sentence(told)}


def in_a_sentence(told: dict[str, Any]) -> str:
    """What the test found of a method, for a reader."""
    last = told["stages"][-1]
    if told["alike"] is None:
        return f"The maps of {told['method']} are constant once all weights are random: they cannot be compared."
    rho = f"rank correlation {last['rho']:.2f} over {last['images']} pictures"
    if told["alike"]:
        return (
            f"The maps of {told['method']} stay alike with every weight random ({rho}): they show the picture, and do "
            "not explain what this network learned."
        )
    return f"The maps of {told['method']} change when all weights are random ({rho}), which is the least they must do."


def correlations(before: np.ndarray, after: np.ndarray) -> np.ndarray:  # (N, H, W) twice -> (N,)
    """Spearman's rank correlation of each pair of maps; NaN where one of them is constant."""
    found = np.full(len(before), np.nan)
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        a, b = (rankdata(each) - (each.size + 1) / 2 for each in (a.ravel(), b.ravel()))
        if (length := np.sqrt((a @ a) * (b @ b))) > 0:
            found[number] = a @ b / length
    return found


def randomise(modules: list[nn.Module], seed: int) -> None:
    """Make the weights of these modules anew, in place: convolutions by He et al.'s normal distribution, as the
    backbones begin; all else as its class does, so that norms become the identity and forget their statistics.

    Drawn on the CPU from `seed` alone; the caller's random state is as before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in (inner for outer in modules for inner in outer.modules()):
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                continue
            home = next((p.device for p in module.parameters(recurse=False)), None)
            module.to("cpu")
            reset()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if home is not None:
                module.to(home)
