"""Small run folders to make reports of."""

import json

import numpy as np
import pandas as pd

from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.summary import summarise, write_json_atomic

CLASSES = ["Pneumonia", "Pleural effusion", "Hernia", "Never seen"]


def multilabel(rng, n, classes):
    """Common, less common, rare, never positive; a third of the second is unknown."""
    shares = np.array([0.3, 0.15, 0.02, 0.0])[: len(classes)]
    target = (rng.random((n, len(classes))) < shares).astype(float)
    target[rng.random(n) < 0.3, 1] = np.nan
    logits = rng.normal(size=target.shape) * 1.2 + 2 * np.nan_to_num(target) - 1.5
    return target, logits.astype(np.float32)


def multiclass(rng, n, classes):
    k = len(classes)
    true = rng.integers(0, k, n)
    near = 2 * np.eye(k) + np.eye(k, k=1)  # each is a little like the next
    return np.eye(k)[true], (near[true] + rng.normal(size=(n, k))).astype(np.float32)


def write_run(folder, kind="multilabel", classes=tuple(CLASSES), n=400, n_boot=50, synthetic=False, random=False):
    """A complete run folder but for the report."""
    rng = np.random.default_rng(0)
    classes, scores, counts = list(classes), {}, {}
    make = multilabel if kind == "multilabel" else multiclass
    for split, size in (("val", n // 2), ("test", n)):
        target, logits = make(rng, size, classes)
        patients = [f"p{split}{i}" for i in rng.integers(0, size // 2, size)]
        given = Predictions.from_arrays(
            [f"images/{split}_{i}.png" for i in range(size)], patients, classes, kind, target, logits
        )
        given.write(folder / f"predictions_{split}.csv")
        scores[split] = summarise(given, n_boot=n_boot)
    for split, size in (("train", 4 * n), ("val", n // 2), ("test", n)):
        target, _ = make(rng, size, classes)
        sums = {"positive": target == 1, "negative": target == 0, "unknown": np.isnan(target)}
        per_class = {c: {w: int(v[:, k].sum()) for w, v in sums.items()} for k, c in enumerate(classes)}
        counts[split] = {"images": size, "patients": size // 2, "classes": per_class}
    write_json_atomic(folder / "scores.json", scores)
    audit = {
        "name": "chestxray",
        "has_patients": True,
        "counts": counts,
        "leaks": [],
        "warnings": ["The column view predicts Pneumonia (AUROC 0.81): the network may learn it instead."],
        "bad_images": [{"path": "images/broken.png", "reason": "truncated after 1,024 bytes"}],
    }
    environment = {
        "command": "python -m finetune backbone=resnet50 data.root=/home/jane/chest trainer.max_epochs=8",
        "versions": {"python": "3.11.4", "torch": "2.14.1", "finetune": "0.1.0"},
        "commit": "0123456789abcdef",
        "seed": 0,
        "machine": "Linux x86_64, 2 CPUs",
        "weights": {
            "source": None if random else "/home/jane/.cache/huggingface/resnet50.a1_in1k/model.safetensors",
            "sha256": "ab" * 32,
            "tag": "a1_in1k",
            "licence": "apache-2.0",
            "random": random,
        },
        "data": {
            "name": "chestxray",
            "root": "chest",
            "hash": "cd" * 32,
            "synthetic": synthetic,
            "notes": ["111,770 of 112,120 listed images are absent under /home/jane/chest."],
        },
    }
    for name, value in (("audit.json", audit), ("environment.json", environment)):
        (folder / name).write_text(json.dumps(value))
    (folder / "config.yaml").write_text(
        "backbone: {name: resnet50, weights: default}\n"
        "data: {name: chestxray, root: /home/jane/chest, image_size: 224}\n"
        "optimizer: {lr: 0.0003, betas: [0.9, 0.999]}\nseed: 0\n"
    )
    epochs = np.arange(8)
    pd.DataFrame(
        {
            "epoch": epochs,
            "step": 50 * (epochs + 1),
            "phase": "full",
            "lr": 3e-4 * np.cos(epochs / 8 * np.pi / 2),
            "seconds": 12.5,
            "train/loss": 0.6 * 0.8**epochs,
            "val/loss": 0.5 + 0.02 * (epochs - 4) ** 2 / 4,
            "val/auroc": 0.8 - 0.01 * (epochs - 5) ** 2,
        }
    ).to_csv(folder / "metrics.csv", index=False)
    return folder
