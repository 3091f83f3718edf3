"""Segmentation and detection beside torchvision: time of a training step, time of inference, bytes kept for backward.

    python -m benchmarks.dense [--pairs 9] [--size 224] [--batch 2] [--threads N]   (a section of RESULTS.md)

resnet50 in each: torchvision's deeplabv3_resnet50 and fasterrcnn_resnet50_fpn with random weights and trainable norms,
ours with the same layers and options. The detectors have the same weights as well, so that they propose and classify
the same boxes. Times are taken in turn (A B C A B C ...); a ratio is formed within each round, and its median and
quartiles over the rounds are given. With one thread it is the processor's time, which other programs hardly change;
with more it is the time that passes. What is kept for backward is counted: every storage that autograd saves in the
forward pass, once, but for the images, parameters and buffers.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from finetune.weights.detector import fit_detector
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50

from benchmarks.results import machine, write_section
from finetune.backbones.folding import fold_batch_norm
from finetune.network import Network, NetworkSpec

CLASSES = 3
MEMORY = ("standard", "lean", "minimal")
DETECTOR = {"anchor_scales": [8.0], "box_batch_size_per_image": 512}  # torchvision's options


def same_weights(ours: Network, theirs: nn.Module) -> None:
    """torchvision's detector loaded into ours: then both have the same proposals and detections."""
    state, fit = fit_detector(theirs.state_dict(), ours)
    assert not fit.random_init + fit.dropped
    ours.load_state_dict(state)


def segmenter(memory: str) -> Network:
    options = {"memory": memory, "output_stride": 8}
    return NetworkSpec("resnet50", CLASSES, 3, "deeplabv3", options).build()


def detector(memory: str) -> Network:
    pool = {"extra": "pool"}
    return NetworkSpec("resnet50", CLASSES, 3, "faster_rcnn", {"memory": memory}, DETECTOR, "pyramid", pool).build()


def their_segmenter() -> nn.Module:
    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)


def their_detector(size: int) -> nn.Module:
    as_is = {"min_size": size, "max_size": size, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **as_is)


@contextmanager
def counted(net: nn.Module, images: Tensor) -> Iterator[dict[int, int]]:
    """Address -> bytes of each storage that autograd saves meanwhile."""
    known = {t.untyped_storage().data_ptr() for t in [images, *net.parameters(), *net.buffers()]}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def losses(images: Tensor) -> dict[str, Callable[[nn.Module], Tensor]]:
    """Task and side -> the loss of a network on these images."""
    n, _, side, _ = images.shape
    mask = torch.randint(CLASSES, (n, side, side), generator=torch.Generator().manual_seed(1))
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8], [0.05, 0.5, 0.3, 0.95]]) * side
    labels = torch.tensor([0, 1, 2])
    boxes, numbers = [corners] * n, [labels] * n

    def ours_detect(net: nn.Module) -> Tensor:
        maps = net.run(images, stop="head")  # type: ignore[operator]
        return sum(net.head.losses(maps, boxes, numbers, side=side).values())  # type: ignore[operator,union-attr]

    def their_detect(net: nn.Module) -> Tensor:
        targets = [{"boxes": corners, "labels": labels + 1} for _ in range(n)]
        return sum(net(list(images), targets).values())  # type: ignore[return-value]

    return {
        "segment, ours": lambda net: nn.functional.cross_entropy(net(images), mask),
        "segment, torchvision": lambda net: nn.functional.cross_entropy(net(images)["out"], mask),
        "detect, ours": ours_detect,
        "detect, torchvision": their_detect,
    }


def seconds(work: Callable[[], object]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    work()
    return clock() - began


def train(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    loss(net).backward()


def in_words(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 3, given.size, given.size, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    rows = ["| network | kept for backward, MiB (share) | training step / torchvision's | inference / torchvision's |"]
    rows.append("|---|---|---|---|")
    of_task = losses(images)
    for task, make, theirs in (
        ("segment", segmenter, their_segmenter()),
        ("detect", detector, their_detector(given.size)),
    ):
        networks: dict[str, nn.Module] = {"torchvision": theirs, **{memory: make(memory) for memory in MEMORY}}
        if task == "detect":
            for memory in MEMORY:
                same_weights(networks[memory], theirs)
        kept, times = {}, {name: [] for name in networks}
        for name, net in networks.items():
            net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            loss = of_task[f"{task}, {'torchvision' if name == 'torchvision' else 'ours'}"]
            torch.manual_seed(0)  # which proposals are sampled
            with counted(net, images) as saved:
                total = loss(net)
            total.backward()
            kept[name] = sum(saved.values()) / 2**20
        for _ in range(given.pairs):
            for name, net in networks.items():
                loss = of_task[f"{task}, {'torchvision' if name == 'torchvision' else 'ours'}"]
                net.zero_grad()
                torch.manual_seed(0)
                times[name].append(seconds(partial(train, net, loss)))
        folded = fold_batch_norm(networks["standard"].eval())
        eager = theirs.eval()
        shown = list(images) if task == "detect" else images
        ratios = []
        with torch.inference_mode():
            folded(images), eager(shown)
            for _ in range(given.pairs):
                theirs_take = seconds(partial(eager, shown))
                ratios.append(theirs_take / seconds(partial(folded, images)))
        for name in networks:
            share = f"{kept[name]:.1f} ({kept[name] / kept['torchvision']:.2f})"
            step = in_words([a / b for a, b in zip(times[name], times["torchvision"], strict=True)])
            faster = f"{in_words(ratios)} times as fast (folded)" if name == "standard" else ""
            row = f"| {task}, {name} | {share} | {step if name != 'torchvision' else '1'} | {faster} |"
            rows.append(row)
            print(row, flush=True)
    head = (
        f"`python -m benchmarks.dense --pairs {given.pairs} --size {given.size} --batch {given.batch} "
        f"--threads {given.threads}`: deeplabv3 and Faster R-CNN with a pyramid on resnet50, random weights (the same "
        "of both detectors), float32.\n"
        f"{machine()}\n\n"
    )
    write_section("Segmentation and detection", head + "\n".join(rows))


if __name__ == "__main__":
    main()
