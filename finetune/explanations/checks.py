"""Does a heat map depend on what the network learned? The weight randomisation test of Adebayo et al., 2018 ("Sanity
Checks for Saliency Maps").

From the head down, the parts of a copy are randomised one after the other, and the maps of the same
images and classes are compared with those of the trained network by the rank correlation of their pixels. A map that
stays the same for any weights shows the image (its edges, its centre), not what the network learned.

A verdict needs MIN_IMAGES images whose maps vary: correlations of single images spread by about 0.4, so the mean of 20
is known to 0.2, and a mean of 0 or 1 is distinguishable from ALIKE. It also needs maps of at least MIN_POSITIONS
positions before they are enlarged: a rank correlation of four numbers says nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from scipy.stats import t as student
from torch import Tensor, nn

from finetune.explanations.maps import heat_of
from finetune.network import Network

MIN_IMAGES = 20  # images whose maps vary in both networks, for a verdict
MIN_POSITIONS = 16  # of a map before it is enlarged, for a verdict
ALIKE = 0.5  # a rule of thumb: above it maps of random weights are still recognisably those of the trained network


def randomisation(
    network: Network,
    images: Tensor,
    classes: Tensor,
    method: str = "grad_cam",
    *,
    positions: int | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """{method, images, alike, stages: [{part, rho, low, high, images, constant}], sentence}, in the order of
    randomising.

    `rho` is the mean of Spearman's correlation over the images whose maps both vary, with its 95 % interval; a map that
    is constant (Grad-CAM with no evidence for the class) has no correlation and counts in
    `constant`. It is None where no image is left. `alike` says whether the maps survive all weights being random; None:
    unknown, since too few maps vary, the interval holds ALIKE, or the maps have too few `positions` (where they
    are enlarged).
    """
    return compare_weights(
        network,
        lambda network: heat_of(network, images, classes, method, **options).numpy(),
        method,
        positions=positions,
        seed=seed,
    )


def compare_weights(
    network: Network,
    heat: Callable[[Network], np.ndarray],
    method: str,
    *,
    positions: int | None = None,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> dict[str, Any]:
    """As `randomisation`, for maps of any kind.

    Args:
        heat: a network -> the maps (N, H, W) of the same images and targets.
        method: its name.
        where: bool (N, H, W), the pixels of each map that are compared; None compares all.
    """
    trained = heat(network)
    changed = copy.deepcopy(network)
    stages: list[dict[str, Any]] = []
    for number, (part, modules) in enumerate(reversed(changed.parts().items())):
        randomise(modules, seed + number)
        rho = correlations(trained, heat(changed), where)
        defined = rho[~np.isnan(rho)]
        stages.append({"part": part, **mean(defined), "images": len(defined), "constant": len(rho) - len(defined)})
    result = {"method": method, "images": len(trained), "positions": positions, "alike": verdict(stages[-1], positions)}
    result |= {"stages": stages}
    return {**result, "sentence": in_a_sentence(result)}


def mean(rho: np.ndarray) -> dict[str, float | None]:
    """{rho, low, high}: the mean with Student's interval, from MIN_IMAGES values on."""
    if not len(rho):
        return {"rho": None, "low": None, "high": None}
    middle = float(rho.mean())
    if len(rho) < MIN_IMAGES:
        return {"rho": middle, "low": None, "high": None}
    half = float(student.ppf(0.975, len(rho) - 1) * rho.std(ddof=1) / np.sqrt(len(rho)))
    return {"rho": middle, "low": max(middle - half, -1.0), "high": min(middle + half, 1.0)}


def verdict(last: Mapping[str, Any], positions: int | None) -> bool | None:
    """Whether maps of random weights are like those of the trained ones; None where that is unknown."""
    if last["low"] is None or (positions is not None and positions < MIN_POSITIONS):
        return None
    if last["low"] > ALIKE or last["high"] < -ALIKE:
        return True
    return False if last["low"] > -ALIKE and last["high"] < ALIKE else None


def in_a_sentence(result: dict[str, Any]) -> str:
    """The result of the test in a sentence."""
    last, method, positions = result["stages"][-1], result["method"], result["positions"]
    over = f"over {last['images']} of {result['images']} image{'' if result['images'] == 1 else 's'}"
    unknown = f"Whether the maps of {method} depend on the weights is unknown"
    if positions is not None and positions < MIN_POSITIONS:
        return f"{unknown}: they have {positions} positions, too few to be compared (fewer than {MIN_POSITIONS})."
    if last["images"] < MIN_IMAGES:
        return (
            f"{unknown}: the maps of {last['images']} of {result['images']} images vary, with these weights and with "
            f"random ones; {MIN_IMAGES} are needed."
        )
    rho = f"rank correlation {last['rho']:.2f} ({last['low']:.2f} to {last['high']:.2f}) {over}"
    if result["alike"] is None:
        return f"{unknown}: with every weight random the {rho}, on either side of {ALIKE}."
    if result["alike"]:
        return (
            f"The maps of {method} stay the same with every weight random ({rho}): they show the image, and do not "
            "explain what this network learned."
        )
    return f"The maps of {method} change when all weights are random ({rho}), as they must."


def correlations(before: np.ndarray, after: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rank correlation (N,) of each pair of maps (N, H, W), over the pixels `where` (N, H, W) is true; NaN
    where one of them is constant."""
    rho = np.full(len(before), np.nan)
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        if where is not None:
            a, b = a[where[number]], b[where[number]]
        a, b = (rankdata(values) - (values.size + 1) / 2 for values in (a.ravel(), b.ravel()))
        if (length := np.sqrt((a @ a) * (b @ b))) > 0:
            rho[number] = a @ b / length
    return rho


def randomise(modules: list[nn.Module], seed: int) -> None:
    """Randomise the weights of these modules, in place: convolutions by He et al.'s normal distribution, as the
    backbones begin; all else as its class does, so that norms become the identity and forget their statistics.

    Drawn on the CPU, only from `seed`; the caller's random state is unchanged.
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
