"""kill -9 at random moments, then resume: is the run the one that was never killed, bit by bit?

    python -m benchmarks.kills [--kills 3] [--seed 0] [--only NAME]

Each case is a small fit as a user starts it. It runs to its end once; then it is started again and killed, resumed, and
killed again, until `--kills` kills are done and it may end. The moments take turns: drawn evenly over the time from the
first line of output; as the checkpoint of an epoch appears; as one of the files of the results, which is drawn,
appears. Compared are the last checkpoint's weights, metrics.csv (without times and memory) and the predictions, to the
last bit. Writes the section "Kills" of RESULTS.md.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.results import machine, write_section

TINY = [
    "backbone=resnet20_cifar", "backbone.weights=none", "data.image_size=24", "data.batch_size=12",
    "trainer.accelerator=cpu", "data.num_workers=0", "evaluation.thumbnails=0",
    "trainer.enable_progress_bar=false",
]  # fmt: skip
CLASSES = [
    *TINY,
    "data=csv",
    "data.table=table.csv",
    "data.label=label",
    "data.patient=patient",
    "trainer.max_epochs=8",
]
PROBE = ["finetuning=linear_probe", "transforms=none"]
CASES = {
    "full": CLASSES,
    "head_then_full, accumulation": [*CLASSES, "finetuning=head_then_full", "trainer.accumulate_grad_batches=2"],
    "gradual, one cycle, 2 workers": [*CLASSES, "finetuning=gradual", "schedule=onecycle", "data.num_workers=2"],
    "EMA, mixup, 2 workers": [*CLASSES, "averaging=ema", "mixing=mixup", "data.num_workers=2"],
    "SWA, CutMix, head_then_full": [*CLASSES, "averaging=swa", "mixing=cutmix", "finetuning=head_then_full"],
    "linear probe, stored activations": [*CLASSES, *PROBE, "frozen_cache=on"],
    "gradual, stored activations, versions": [*CLASSES, "finetuning=gradual", "frozen_cache=on", "data.versions=2"],
    "two processes, frozen norms": [*CLASSES, "trainer.devices=2", "finetuning.norms=frozen"],
    "two processes, EMA, mixup": [*CLASSES, "trainer.devices=2", "averaging=ema", "mixing=mixup"],
    "two processes, stored activations": [*CLASSES, *PROBE, "trainer.devices=2", "frozen_cache=on"],
    "segment": [
        *TINY, "task=segment", "data=folder", "data.root=masks", "data.regions=[background,square]", "head=fpn",
        "neck.channels=16", "head.channels=16", "trainer.max_epochs=15", "finetuning=head_then_full",
    ],
    "detect": [
        *TINY, "task=detect", "data=csv", "data.table=boxes.csv", "data.boxes=[x,y,w,h]", "data.label=label",
        "data.patient=patient", "trainer.max_epochs=12", "head=retinanet", "neck.finest=2", "data.val_fraction=0.2",
    ],
}  # fmt: skip
TIMES = ("seconds", "peak_mib")
KINDS = ("any", "checkpoint", "results")
RESULTS = ("predictions_val.csv", "predictions_test.csv", "model.safetensors", "typical.safetensors", "report.html")


def draw(folder: Path) -> None:
    """Squares on noise: table.csv (two classes), masks/ (images and masks), boxes.csv."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks/images", "masks/masks"):
        (folder / name).mkdir(parents=True)
    rows, boxes = [], []
    for number in range(72):
        pixels = rng.integers(0, 120, (32, 32)).astype(np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        left, top, side = (int(value) for value in rng.integers((2, 2, 8), (16, 16, 14)))
        if bright := number % 2 == 0:
            pixels[top : top + side, left : left + side] += 110
            mask[top : top + side, left : left + side] = 1
            boxes.append([f"images/{number:02d}.png", left, top, side, side, "square", f"p{number // 3}"])
        Image.fromarray(pixels).save(folder / f"images/{number:02d}.png")
        Image.fromarray(pixels).save(folder / f"masks/images/{number:02d}.png")
        Image.fromarray(mask).save(folder / f"masks/masks/{number:02d}.png")
        rows.append([f"images/{number:02d}.png", "yes" if bright else "no", f"p{number // 3}"])
    pd.DataFrame(rows, columns=["path", "label", "patient"]).to_csv(folder / "table.csv", index=False)
    columns = ["path", "x", "y", "w", "h", "label", "patient"]
    pd.DataFrame(boxes, columns=columns).to_csv(folder / "boxes.csv", index=False)


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "FINETUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *words], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], what: str) -> str:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{what} ended with {process.returncode}\n{out[-3000:]}")
    return out


def result(run: Path) -> dict[str, object]:
    """What must not depend on kills."""
    with (run / "metrics.csv").open(newline="") as file:
        metrics = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    tables = {path.name: path.read_bytes() for path in sorted(run.glob("predictions_*")) if path.is_file()}
    return {"metrics": metrics, "weights": weights, "predictions": tables}


def differences(one: dict, other: dict) -> list[str]:
    """Names of what differs."""
    names = [key for key in ("metrics", "predictions") if one[key] != other[key]]
    weights = [key for key, value in one["weights"].items() if not torch.equal(value, other["weights"][key])]
    return names + [f"weights ({len(weights)} tensors)"] * bool(weights)


def wait(process: subprocess.Popen[str], run: Path, kind: str, left: float, generator: random.Random) -> str:
    """Returns at a moment of that kind, or where the process ends, and names the moment."""
    epochs = sorted(path.stem for path in (run / "checkpoints").glob("epoch_*"))
    if kind == "any":
        time.sleep(generator.uniform(0.0, left))
        epochs = sorted(path.stem for path in (run / "checkpoints").glob("epoch_*"))
        return f"after {epochs[-1]}" if epochs else "before epoch 0 was saved"
    if kind == "checkpoint":
        number = int(epochs[-1].removeprefix("epoch_")) + 1 if epochs else generator.randrange(2)
        awaited = run / "checkpoints" / f"epoch_{number:03d}.ckpt"
        moment = f"as {awaited.name} appeared"
    else:
        awaited = run / generator.choice(RESULTS)
        moment = f"as {awaited.name} appeared"
    while process.poll() is None:
        names = {entry.name for entry in os.scandir(awaited.parent)} if awaited.parent.is_dir() else set()
        if any(name == awaited.name or name.startswith((f".{awaited.name}", f"{awaited.name}.")) for name in names):
            break
        time.sleep(0.0005)
    return moment


def check(words: list[str], folder: Path, kills: int, generator: random.Random) -> tuple[list[str], list[str]]:
    """What differs, and the moments of the kills."""
    begun = time.perf_counter()
    finish(start([*words, "hydra.run.dir=whole"], folder), "whole")
    whole = time.perf_counter() - begun
    shutil.rmtree(folder / "cache", ignore_errors=True)
    process, moments = start([*words, "hydra.run.dir=killed"], folder), []
    for _ in range(kills):
        started = time.perf_counter()
        assert process.stdout is not None
        process.stdout.readline()  # from its first line on
        kind = KINDS[len(moments) % len(KINDS)]
        left = max(0.5, 0.8 * whole - (time.perf_counter() - started))
        moment = wait(process, folder / "killed", kind, left, generator)
        if process.poll() is not None:
            break
        moments.append(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if (folder / "killed" / "scores.json").is_file():  # it had just ended
            return differences(result(folder / "whole"), result(folder / "killed")), moments
        began = (folder / "killed" / "config.yaml").is_file()
        process = start(["resume=killed"] if began else [*words, "hydra.run.dir=killed"], folder)
    finish(process, "resumed")
    return differences(result(folder / "whole"), result(folder / "killed")), moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    generator = random.Random(given.seed)
    rows, total = ["| fit | kills | moments | differs |", "|---|---|---|---|"], 0
    for name, words in CASES.items():
        if given.only not in name:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            draw(folder := Path(temporary))
            different, moments = check(words, folder, given.kills, generator)
        total += len(moments)
        rows.append(f"| {name} | {len(moments)} | {'; '.join(moments)} | {', '.join(different) or 'nothing'} |")
        print(rows[-1], flush=True)
    if not given.only:
        head = (
            f"`python -m benchmarks.kills --kills {given.kills} --seed {given.seed}`: {total} kills.\n{machine()}\n\n"
        )
        write_section("Kills", head + "\n".join(rows))


if __name__ == "__main__":
    main()
