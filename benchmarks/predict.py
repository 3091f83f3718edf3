"""job=predict of many images: its rate beside that of the network alone, its memory, kills, and a shared list.

    python -m benchmarks.predict rate|fast|memory|kills|share

`rate`: resnet18 with folded batch norms (fast=true) on PNGs, against the same network on batches that lie in memory, in
turn (A B A B). `fast`: the same at 224 px, and folded norms against others. `memory`: the highest resident memory above
that after the imports, of a list of 1,000 and of 100,000 small PNGs. `kills`: kill -9 at random moments, and the same
command until it ends: are the bytes those of a run that was never killed? `share`: two processes with the same command,
one of which is killed. Each part writes its own lines of the section "Prediction" of RESULTS.md.
"""

import argparse
import io
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.results import RESULTS, machine, write_section
from finetune import fold_batch_norm
from finetune.config import compose
from finetune.config.settings import parse
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.jobs import predict as job
from finetune.model_file import Model, load
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder

BATCH, FILES = 32, 500
TITLE = "Prediction"


def prepare(folder: Path, backbone: str, side: int) -> None:
    """model.safetensors with random weights, and FILES PNGs of that side."""
    torch.manual_seed(0)
    spec = NetworkSpec(backbone, 2)
    network = spec.build()
    with torch.no_grad():
        for _ in range(5):  # batch norms with statistics of their own
            network.train()(torch.randn(8, 3, side, side))
    answers = ClassAnswers(["no", "yes"], "multiclass")
    Model(network.eval(), spec, Preprocessing(side), answers).save(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4), np.uint8))
        coarse.resize((side, side)).save(folder / f"images/{number:03d}.png")


def write_list(folder: Path, n: int) -> str:
    """A list of n paths, which repeats the images."""
    text = "".join(f"images/{number % FILES:03d}.png\n" for number in range(n))
    (folder / f"{n}.txt").write_text(text)
    return f"input={folder}/{n}.txt"


def words(folder: Path, *more: str) -> list[str]:
    fixed = [f"model={folder}/model.safetensors", f"batch_size={BATCH}", "trainer.accelerator=cpu"]
    return ["job=predict", *fixed, *more]


def run_job(folder: Path, typed: list[str]) -> float:
    """Seconds that the job takes, from its settings to its output."""
    settings = parse(compose.plain(compose.compose(typed)))
    (folder / "run").mkdir(exist_ok=True)
    begun = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        job.predict(settings, RunFolder(folder / "run"), typed)
    return time.perf_counter() - begun


def rate(folder: Path, side: int, n: int, rounds: int) -> str:
    """A row: images per second of the network alone and of the job, and their ratio in each round."""
    prepare(folder, "resnet18", side)
    typed = words(folder, write_list(folder, n), "fast=true", f"output={folder}/out.csv")
    network = fold_batch_norm(load(folder / "model.safetensors").network)
    batches = [torch.randn(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last) for _ in range(4)]

    def alone() -> float:
        begun = time.perf_counter()
        with torch.inference_mode():
            for number in range(n // BATCH):
                network(batches[number % 4])
        return time.perf_counter() - begun

    alone()
    pairs = [(alone(), run_job(folder, typed)) for _ in range(rounds)]
    bare, of_job = ([n / seconds for seconds in column] for column in zip(*pairs, strict=True))
    ratios = [first / second for first, second in pairs]
    return (
        f"| {side} | {n:,} | {statistics.median(bare):.0f} [{min(bare):.0f}, {max(bare):.0f}] "
        f"| {statistics.median(of_job):.0f} [{min(of_job):.0f}, {max(of_job):.0f}] "
        f"| {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |"
    )


def folding(folder: Path, rounds: int) -> str:
    """How far probabilities move by fast=true, and what it saves."""
    model = load(folder / "model.safetensors")
    images = sorted((folder / "images").iterdir())[:128]
    ratios, moved = [], 0.0
    for _ in range(rounds):
        tables, seconds = [], []
        for fast in (False, True):
            stream = model.predict_stream([images[:BATCH], images], fast=fast)
            next(stream)
            begun = time.perf_counter()
            tables.append(next(stream))
            seconds.append(time.perf_counter() - begun)
        ratios.append(seconds[0] / seconds[1])
        moved = max(moved, float(np.abs(tables[0]["prob_yes"] - tables[1]["prob_yes"]).max()))
    return (
        f"fast=true moves a probability by {moved:.1e} at most (128 images of 224 px, random weights), and is "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times as fast."
    )


def start(folder: Path, output: str, n: int, name: str) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    typed = words(folder, write_list(folder, n), f"output={folder}/{output}", f"hydra.run.dir={folder}/{name}")
    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *typed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def measure_rate(arguments: argparse.Namespace) -> str:
    header = "| px | images | network, images/s | job, images/s | job / network: median [least, most] |"
    with tempfile.TemporaryDirectory() as temporary:
        row = rate(Path(temporary), 96, 3072, arguments.rounds)
    about = (
        "resnet18, folded, batches of 32, PNG files of the network's size; the job with all it does but the imports:"
    )
    return f"{about}\n\n{header}\n|---|---|---|---|---|\n{row}"


def measure_folding(arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        row = rate(folder := Path(temporary), 224, 384, arguments.rounds)
        return f"The same at 224 px: {row}\n\n{folding(folder, arguments.rounds)}"


def measure_memory(arguments: argparse.Namespace) -> str:
    """Each list in a process of its own: the peak of a process never falls."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        prepare(folder := Path(temporary), "resnet20_cifar", 16)
        for n in (1_000, 100_000):
            command = [sys.executable, "-m", "benchmarks.predict", "peak", "--folder", temporary, "--images", str(n)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[n] = [float(value) for value in re.findall(r"[\d.]+", out.splitlines()[-1])]
            print(n, found[n], flush=True)
        assert sum(1 for _ in (folder / "100000.csv").open()) == 100_001
    (small, _), (large, seconds) = found[1_000], found[100_000]
    return (
        f"Highest memory above that after the imports: {small:.1f} MiB for 1,000 images, {large:.1f} MiB for 100,000 "
        f"({large / small:.2f} times; resnet20_cifar, 16 px, {100_000 / seconds:,.0f} images/s)."
    )


def print_peak(arguments: argparse.Namespace) -> None:
    """MiB above the memory after the imports, and seconds, of a list."""
    folder = Path(arguments.folder)
    typed = words(folder, write_list(folder, arguments.images), f"output={folder}/{arguments.images}.csv")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run_job(folder, typed)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 1024:.1f} {seconds:.1f}")


def count_parts(folder: Path) -> int:
    """Finished chunks of an unfinished prediction."""
    return len(list(folder.glob("0*")))


def measure_kills(arguments: argparse.Namespace) -> str:
    generator, moments = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        prepare(folder := Path(temporary), "resnet20_cifar", 16)
        start(folder, "whole.csv", arguments.images, "whole").communicate()
        for _ in range(arguments.kills):
            process = start(folder, "killed.csv", arguments.images, "killed")
            part = folder / "killed.csv.part"
            before = count_parts(part)
            while count_parts(part) <= before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 2))
            process.kill()
            process.communicate()
            moments.append(count_parts(part))
            print("killed after", moments[-1], "parts", flush=True)
            if process.returncode != -signal.SIGKILL:
                break
        start(folder, "killed.csv", arguments.images, "killed").communicate()
        equal = (folder / "whole.csv").read_bytes() == (folder / "killed.csv").read_bytes()
    total = -(-arguments.images // (job.BATCHES_PER_CHUNK * BATCH))
    return (
        f"{len(moments)} times kill -9 (seed {arguments.seed}), after {', '.join(map(str, moments))} of {total} parts: "
        f"the bytes are {'equal' if equal else 'DIFFERENT'}."
    )


def measure_share(arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        prepare(folder := Path(temporary), "resnet20_cifar", 16)
        start(folder, "whole.csv", arguments.images, "whole").communicate()
        processes = [start(folder, "shared.csv", arguments.images, f"run{i}") for i in range(2)]
        part = folder / "shared.csv.part"
        while count_parts(part) < 12:
            time.sleep(0.02)
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[1].communicate()
        out, _ = processes[0].communicate()
        equal = (folder / "whole.csv").read_bytes() == (folder / "shared.csv").read_bytes()
        clean = not part.exists()
    if processes[0].returncode or not clean:
        raise SystemExit(out)
    return f"Two processes with one list, one of them killed: the bytes are {'equal' if equal else 'DIFFERENT'}."


PARTS = {
    "rate": measure_rate,
    "fast": measure_folding,
    "memory": measure_memory,
    "kills": measure_kills,
    "share": measure_share,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "peak"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    if arguments.part == "peak":
        print_peak(arguments)
        return
    text = PARTS[arguments.part](arguments)
    print(text)
    old = RESULTS.read_text(encoding="utf-8")
    section = re.search(rf"\n## {TITLE}\n(.*?)(?=\n## |\Z)", old, re.DOTALL)
    parts = dict(re.findall(r"(?s)### (\w+)\n\n(.*?)(?=\n### |\Z)", section[1] if section else ""))
    parts[arguments.part] = text
    head = f"`python -m benchmarks.predict {'|'.join(PARTS)}`\n{machine()}\n\n"
    write_section(TITLE, head + "\n\n".join(f"### {name}\n\n{parts[name].strip()}" for name in PARTS if name in parts))


if __name__ == "__main__":
    main()
