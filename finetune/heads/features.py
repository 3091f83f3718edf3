"""The maps that a backbone or a neck gives, and those that a neck or a head reads."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from finetune.errors import FinetuneError, one_of


class FeatureInfo(NamedTuple):
    """One map (N, num_chs, H / reduction, W / reduction) of images (N, C, H, W), in the words of timm."""

    num_chs: int
    reduction: int


def in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


class RowRunner(nn.Module):
    """A neck or head that runs its rows of modules by `run`, which `Network` sets to that of the backbone: `memory`
    then holds for these rows as well."""

    run: Callable[[Iterable[nn.Module], Tensor], Tensor] = staticmethod(in_order)
    memory = "standard"
    """How much training keeps for backward, as a backbone's `memory`; set by `Network`."""


def takes(part: object) -> Literal["map", "maps"]:
    """The input of a neck or head, or of its constructor: its attribute `takes`, by default "map".

    - "map": the last map, a tensor (N, C, H, W)
    - "maps": the list of all maps, the finest first

    Raises:
        FinetuneError: `takes` is something else.
    """
    part = part.func if isinstance(part, partial) else part
    value = getattr(part, "takes", "map")
    if value not in ("map", "maps"):
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise one_of(f"{name}.takes", value, ("map", "maps"))
    return "maps" if value == "maps" else "map"


GIVES = ("classes", "regions", "detections")


def gives(part: object) -> str:
    """What a head, or what makes it, returns: its attribute `gives`, by default "classes".

    - "classes": logits (N, K)
    - "regions": logits (N, K, H, W) of images (N, C, H, W)
    - "detections": boxes with labels and scores, a list of one entry per image

    `forward` of the last two takes the size (H, W) of the images besides.

    Raises:
        FinetuneError: `gives` is something else.
    """
    part = part.func if isinstance(part, partial) else part
    value = getattr(part, "gives", "classes")
    if value not in GIVES:
        name = part.__name__ if isinstance(part, type) else type(part).__name__
        raise one_of(f"{name}.gives", value, GIVES)
    return str(value)


def as_read(reader: object, maps: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """One map, or several, in the form that the neck or head `reader` takes."""
    if takes(reader) == "maps":
        return [maps] if isinstance(maps, Tensor) else maps
    return maps if isinstance(maps, Tensor) else maps[-1]


def neck_argument(make: Callable[..., nn.Module], features: Sequence[FeatureInfo]) -> list[FeatureInfo]:
    """The constructor's argument of a neck: the maps of the backbone that it reads, all or the last one."""
    return list(features if takes(make) == "maps" else features[-1:])


def head_argument(make: Callable[..., nn.Module], features: Sequence[FeatureInfo]) -> list[FeatureInfo] | int:
    """The constructor's argument of a head: all maps of the neck or backbone, or the channels of the last one."""
    return list(features) if takes(make) == "maps" else features[-1].num_chs


def at_least(least: int, argument: str, value: object) -> None:
    """Refuse an option of a neck or head that is no whole number of at least `least`.

    Raises:
        FinetuneError: naming the argument and its value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FinetuneError(f"{argument}={value!r} must be a whole number of {least} or more.")
