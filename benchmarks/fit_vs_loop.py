"""The fit phase of `python -m finetune` against a bare PyTorch loop doing the same steps on the same images.

    python benchmarks/fit_vs_loop.py data=csv data.table=TABLE data.label=label [key=value ...] [--pairs 3]

Both train the same network with the same optimizer and batch size for the same number of steps and validate after
each epoch, data loading included. The loop is what one writes by hand, on the same decoded images, with the same
augmentation in the same number of worker processes, but without logging, exact means, checkpoints or metrics.
Run A B A B ..., the ratio is the median over the pairs.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, training
from finetune.training.launch import ranks


def quiet(sentence: str) -> None:
    """Nothing is said while the clock runs."""


def loop(settings, table, images, preprocessing) -> float:
    """Seconds of a bare loop."""
    L.seed_everything(settings.seed, verbose=False)
    network = build.network_spec(settings, len(table.classes)).build().to(memory_format=torch.channels_last)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, build.augment(settings))
    workers = settings.data.num_workers
    loaders = {
        split: DataLoader(
            torch.utils.data.Subset(dataset, table.rows(split).tolist()),
            batch_size=settings.data.batch_size,
            shuffle=split == "train",
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=dataset.collate,
        )
        for split, dataset in (("train", data.train_dataset), ("val", data.eval_dataset))
    }
    optimizer = build.optimizer(settings)(network.parameters())
    total = settings.trainer.max_epochs * len(loaders["train"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    loss_of = torch.nn.CrossEntropyLoss() if table.kind == "multiclass" else torch.nn.BCEWithLogitsLoss()
    began = time.perf_counter()
    for _ in range(settings.trainer.max_epochs):
        network.train()
        for batch in loaders["train"]:
            optimizer.zero_grad()
            loss_of(network(batch["image"].contiguous(memory_format=torch.channels_last)), batch["target"]).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.inference_mode():
            for batch in loaders["val"]:
                network(batch["image"].contiguous(memory_format=torch.channels_last))
    return time.perf_counter() - began


def product(settings, table, images, preprocessing) -> float:
    """Seconds of the product's fit phase: Lightning, exact means, checkpoints, metrics.csv and all."""
    L.seed_everything(settings.seed, verbose=False)
    network = build.network_spec(settings, len(table.classes)).build()
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, build.augment(settings))
    with tempfile.TemporaryDirectory() as run:
        began = time.perf_counter()
        training.train(settings, RunFolder(Path(run)), build.task(settings), network, data, quiet, ranks.Place())
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    options, words = parser.parse_known_args()
    settings = parse(compose.plain(compose.compose(["backbone.weights=none", "trainer.max_epochs=1", *words])))
    table = prepare.load_table(build.source(settings).table(), settings.data, print)
    preprocessing = build.preprocessing(settings, None)
    table, images, _ = prepare.decode_and_audit(settings.data, table, preprocessing, print, None)
    ratios = []
    for pair in range(options.pairs):
        ours = product(settings, table, images, preprocessing)
        bare = loop(settings, table, images, preprocessing)
        ratios.append(ours / bare)
        print(f"pair {pair + 1}: fit {ours:.1f} s, loop {bare:.1f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(
        f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
