"""Speed of exported files beside timm, and what 8 bits cost: writes the section "Export" of RESULTS.md.

    python -m benchmarks.export [--models resnet18 resnet50 densenet121] [--rounds 15] [--batches 1 8] [--quick]
    python -m benchmarks.export --model RUN     AUROC of a finished fit, in 32 and 8 bits

The RUN in RESULTS.md is of `python -m benchmarks.kermany_table METADATA_CSV kermany.csv --train 1200 --val 400` and
`python -m finetune data=csv data.table=kermany.csv data.root=DIR data.label=label data.patient=patient_id
data.split=split backbone=resnet18 backbone.weights=none data.image_size=96 trainer.max_epochs=3 optimizer.lr=1e-3`.

Times are taken in pairs (A B B A A B ...) with two threads each, those of onnxruntime without spinning, which would
slow down what follows; a ratio is formed within each round, and its median and range over the rounds are given. Files
have size=square: the resizing is not timed. Random weights.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

from benchmarks.results import machine, write_section
from finetune import export, load
from finetune.backbones.folding import fold_batch_norm
from finetune.deploy.formats import read_onnx
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing

SIZE, CLASSES, THREADS = 224, 5, 2


def classifier(name: str) -> Model:
    """Random weights, with norms as after a few steps of training."""
    torch.manual_seed(0)
    spec = NetworkSpec(name, CLASSES)
    network = spec.build().train()
    with torch.no_grad():
        for seed in range(3):
            network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
    answers = ClassAnswers([str(k) for k in range(CLASSES)], "multiclass")
    return Model(network.eval(), spec, Preprocessing(SIZE), answers)


def ratios(way: Callable[[], object], base: Callable[[], object], rounds: int) -> list[float]:
    """How many times faster than `base` a way is, per round."""
    found = []
    way(), base()
    for number in range(rounds):
        seconds = {}
        for run in (way, base) if number % 2 else (base, way):
            start = time.perf_counter()
            run()
            seconds[run] = time.perf_counter() - start
        found.append(seconds[base] / seconds[way])
    return found


def in_words(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def rows(name: str, batches: list[int], rounds: int) -> list[str]:
    model, noise = classifier(name), np.random.default_rng(0)
    calibration = [noise.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for precision in ("fp32", "int8"):
            path = Path(folder, f"{precision}.onnx")
            export(model, path, size="square", precision=precision, images=calibration)
            runs[precision] = read_onnx(path, THREADS)
        theirs, folded = timm.create_model(name, num_classes=CLASSES).eval(), fold_batch_norm(model.network)
        lines = []
        for batch in batches:
            images = noise.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
            x = model.preprocessing.batch_to_tensor(images)
            last = x.contiguous(memory_format=torch.channels_last)
            ways: dict[str, Callable[[], object]] = {
                "folded": lambda last=last: folded(last),
                "fp32": lambda images=images: runs["fp32"](images),
                "int8": lambda images=images: runs["int8"](images),
            }
            with torch.inference_mode():
                found = {way: ratios(run, lambda x=x: theirs(x), rounds) for way, run in ways.items()}
            over = ratios(ways["int8"], ways["fp32"], rounds)
            cells = [name, batch, *(in_words(found[way]) for way in ("folded", "fp32", "int8")), in_words(over)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
            print(lines[-1], flush=True)
    return lines


def auroc_line(run: str) -> str:
    """Macro AUROC on val of a run, in 32 and 8 bits."""
    from finetune.config import compose
    from finetune.config.settings import parse
    from finetune.steps.exporting import auroc_difference, auroc_sentence, own_files, spread

    model, settings = load(run), parse(compose.plain(compose.compose(["job=export", f"model={run}"])))
    files = own_files(model, settings, "val")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        export(model, path, precision="int8", images=spread(list(files.values()), 64), source="val")
        about = auroc_difference(model, files, read_onnx(path, THREADS), "val", "any", lambda done, total: None)
    data = (model.provenance.get("data") or {}).get("name")
    return f"{model.spec.backbone}, {model.preprocessing.image_size} px, {data}: {auroc_sentence(about)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "densenet121"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", help="a run folder whose AUROC is measured in 8 bits; no times are taken")
    parser.add_argument("--quick", action="store_true", help="three rounds of resnet18; prints, writes nothing")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.model:
        line = auroc_line(options.model)
        print(line)
        command = "`python -m benchmarks.export --model RUN`, whose docstring has the commands of RUN"
        write_section("Export, AUROC in 8 bits", f"{command}\n\n{line}\n\n{machine()}.")
        return
    models, rounds = (["resnet18"], 3) if options.quick else (options.models, options.rounds)
    lines = [line for name in models for line in rows(name, options.batches, rounds)]
    if options.quick:
        return
    title = "Export, speed" if len(models) > 1 else f"Export, speed of {models[0]}"
    write_section(
        title,
        "\n".join(
            [
                f"`python -m benchmarks.export --models {' '.join(models)} --rounds {rounds}`",
                "",
                "How many times faster than timm in eager mode (contiguous), median [range] of the rounds: our folded",
                "network channels last, the exported file in onnxruntime, and in 8 bits; the last column is 8 bits",
                "over 32 bits in onnxruntime.",
                "",
                "| network | batch | folded | ONNX fp32 | ONNX int8 | int8 over fp32 |",
                "| --- | --- | --- | --- | --- | --- |",
                *lines,
                "",
                f"{machine()}, onnxruntime {onnxruntime.__version__}; {SIZE} px, {rounds} rounds, seed 0; load "
                f"{os.getloadavg()[0]:.1f} at the end.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
