"""Our backbones against timm's: logits, every gradient, running statistics and maps, to the last bit.

python -m benchmarks.parity            # every name, 64 px; writes benchmarks/PARITY.md (some minutes)
python -m benchmarks.parity resnet50   # the named ones, to the screen
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from finetune.backbones import Backbone, build, list_models

COLUMNS = ("logits", "gradients", "statistics", "maps")

PAPER = {
    "densenet264": "33.3 M",
    "resnet20_cifar": "0.27 M",
    "resnet32_cifar": "0.46 M",
    "resnet44_cifar": "0.66 M",
    "resnet56_cifar": "0.85 M",
    "resnet110_cifar": "1.7 M",
    "resnet1202_cifar": "19.4 M",
    "plain20_cifar": "as resnet20",
    "plain32_cifar": "as resnet32",
    "plain44_cifar": "as resnet44",
    "plain56_cifar": "as resnet56",
    "plain110_cifar": "as resnet110",
    "preact_resnet110_cifar": "1.7 M",
    "preact_resnet164_cifar": "1.7 M",
    "preact_resnet1001_cifar": "10.2 M",
    "densenet_40_12": "1.0 M",
    "densenet_bc_100_12": "0.8 M",
    "densenet_bc_250_24": "15.3 M",
    "densenet_bc_190_40": "25.6 M",
}
"""Parameters as the papers give them, for the names that timm does not have."""


def main(names: list[str]) -> None:
    rows = [row(name) for name in names or list_models()]
    head = ["name", "parameters", *COLUMNS]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
    print(table)
    if not names:
        text = (
            "# Parity\n\n"
            f"Largest absolute difference to timm {timm.__version__} (torch {torch.__version__}, CPU, one thread) "
            "over eval and train mode: random weights with every norm's scale and shift drawn, 2 images of 64 px. "
            "Each state dict loads strictly into the other.\n"
            "For names that timm does not have: our parameters beside the paper's.\n"
            "Made by `python -m benchmarks.parity`.\n\n" + table + "\n"
        )
        Path(__file__).with_name("PARITY.md").write_text(text, encoding="utf-8")


def row(name: str) -> list[str]:
    ours = build(name)
    count = f"{sum(p.numel() for p in ours.parameters()):,}"
    if not timm.is_model(name):
        return [name, count, f"paper: {PAPER[name]}", "", "", ""]
    found = differences(ours, timm.create_model(name))
    return [name, count, *(f"{found[column]:g}" for column in COLUMNS)]


def differences(ours: Backbone, theirs: nn.Module, *, in_channels: int = 3, size: int = 64) -> dict[str, float]:
    """Largest absolute difference by kind, over eval and train mode; 0.0 only where all bits are equal."""
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, in_channels, size, size, generator=torch.Generator().manual_seed(1))
    worst = dict.fromkeys(COLUMNS, 0.0)

    def note(kind: str, a: Tensor, b: Tensor) -> None:
        if not torch.equal(a, b):
            worst[kind] = max(worst[kind], (a - b).abs().max().item()) or float("nan")

    for training in (False, True):
        logits, maps = run_ours(ours.train(training), images)
        their_logits, their_maps = run_theirs(theirs.train(training), images)
        assert logits.isfinite().all()  # equal numbers, and not equal nonsense
        assert logits.std() > 0
        note("logits", logits, their_logits)
        for a, b in zip(maps, their_maps, strict=True):
            note("maps", a, b)
        gradients = {name: p.grad for name, p in theirs.named_parameters()}
        for name, parameter in ours.named_parameters():
            note("gradients", parameter.grad, gradients[name])
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        note("statistics", buffer, buffers[name])
    return worst


def run_ours(net: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and in eval mode the maps; gradients stay in the parameters. In train mode through `forward` itself."""
    torch.manual_seed(2)  # for dropout and drop path
    if net.training:
        return backward(net, net(images)), []
    maps = net.forward_stages(images)
    features = net.forward_tail(maps[-1])
    return backward(net, net.forward_head(features)), [*maps, features]


def run_theirs(net: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(2)
    if net.training:
        return backward(net, net(images)), []
    features, maps = net.forward_intermediates(images)
    return backward(net, net.forward_head(features)), [*maps[1:], features]  # [0] is the stem's


def backward(net: nn.Module, logits: Tensor) -> Tensor:
    """Gradients of a random weighting, so that every logit has one of its own."""
    net.zero_grad()
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return logits


def randomise(net: nn.Module) -> None:
    """All parameters drawn anew, norms too: a norm that starts at zero would hide its whole branch."""
    largest = max(parameter.numel() for parameter in net.parameters())
    drawn = torch.rand(largest + 997, generator=torch.Generator().manual_seed(0))  # one draw serves all: it is faster
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            start = index * 101 % 997
            values = drawn[start : start + parameter.numel()].view_as(parameter)
            if parameter.ndim == 1:
                parameter.copy_(values + 0.5)  # scale and shift between 0.5 and 1.5
            else:
                limit = (6 / parameter[0].numel()) ** 0.5
                parameter.copy_((2 * values - 1) * limit)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Networks made here keep what memory holds; for those that get their weights later."""
    names = ("kaiming_uniform_", "kaiming_normal_", "uniform_", "normal_")
    patches = [mock.patch.object(nn.init, name, lambda tensor, *args, **kwargs: tensor) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
