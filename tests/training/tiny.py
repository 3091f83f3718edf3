"""A network and a data set small enough to train in a second."""

import hashlib
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch

from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.losses import auto
from finetune.network import NetworkSpec
from finetune.plan import Plan
from finetune.preprocessing import Preprocessing
from finetune.tasks.classification.objective import ClassObjective
from finetune.training.callbacks import Checkpoint, MetricsTable
from finetune.training.module import FineTuning
from finetune.training.schedules import Cosine

SIZE = 16


class Images:
    """Decoded images in memory, with the interface of the cache."""

    def __init__(self, images: np.ndarray):
        self.images, self.bad, self.masks = images, {}, None
        self.sizes = np.tile(images.shape[1:3], (len(images), 1))
        self.digests = [hashlib.sha256(image.data).hexdigest() for image in images]

    def __getitem__(self, row: int) -> np.ndarray:
        return self.images[row]

    def take(self, rows) -> np.ndarray:
        return self.images[np.asarray(rows)]


def table(n: int = 48, kind: str = "multilabel", unknown: float = 0.0) -> tuple[SampleTable, Images]:
    """Gray noise, brighter on the left (class a) or at the top (class b)."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (n, 2)).astype(float)
    if kind == "multiclass":
        target[:, 1] = 1 - target[:, 0]
    images = rng.integers(0, 120, (n, SIZE, SIZE)).astype(np.uint8)
    images[target[:, 0] == 1, :, : SIZE // 2] += 100
    if kind == "multilabel":
        images[target[:, 1] == 1, : SIZE // 2] += 30
        target[rng.random(target.shape) < unknown] = np.nan
    frame = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "patient": [f"p{i // 2}" for i in range(n)],
            "split": ["val" if i % 4 == 0 else "train" for i in range(n)],
            "target_a": target[:, 0],
            "target_b": target[:, 1],
        }
    )
    sample_table = SampleTable(frame, ["a", "b"], kind, Path(), "tiny", [], True, [])
    return sample_table, Images(images)


def data(n: int = 48, batch_size: int = 12, augment=None, mixing=None, progressive=None, **options) -> ImageData:
    sample_table, images = table(n, **options)
    preprocessing = Preprocessing(image_size=SIZE, in_channels=1, mean=(0.5,), std=(0.25,))
    changes = {"mixing": mixing, "progressive": progressive}
    return ImageData(sample_table, images, preprocessing, augment, batch_size=batch_size, **changes)


def module(
    plan: Plan | None = None, schedule=None, lr: float = 1e-2, dropout: float = 0.2, optimizer=None, **options
) -> FineTuning:
    torch.manual_seed(0)
    network = NetworkSpec("resnet20_cifar", 2, in_channels=1, head_options={"dropout": dropout}).build()
    kind = options.pop("kind", "multilabel")

    def adamw(groups):
        return torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)

    return FineTuning(
        network,
        ClassObjective(auto(kind)),
        optimizer or adamw,
        schedule or Cosine(),
        plan or Plan(),
        config={"x": [1]},
        **options,
    )


def trainer(folder: Path, max_epochs: int = 2, callbacks=(), **options) -> L.Trainer:
    folder.mkdir(exist_ok=True)
    return L.Trainer(
        default_root_dir=folder,
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[MetricsTable(folder / "metrics.csv"), Checkpoint(folder / "checkpoints", "val/auroc"), *callbacks],
        **{"accelerator": "cpu", "num_sanity_val_steps": 0, **options},
    )


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
