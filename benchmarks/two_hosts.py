"""Two hosts, each with a network of its own, train one model; the result is that of one process.

    python -m benchmarks.two_hosts          # as root, on Linux with `ip` (iproute2)

Two network namespaces joined by a pair of virtual interfaces stand for two machines with a shared disk: neither reaches
the other but by its address. One process each, gloo, on CPUs. Norms are frozen, because the statistics of a part of a
batch are not those of the whole.

SGD is compared in 32 bits. AdamW divides a gradient by its own size: where a gradient is nearly zero, its rounding
becomes a step of full length. Its weights are compared in 64 bits, and its difference in 32 bits is only printed. SGD
runs under torchrun, AdamW with the variables of a launcher set by hand.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.torch import load_file

HOSTS = ("finetune_a", "finetune_b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29511
TOLERANCE = 1e-5
WORDS = [
    "data=folder", "data.root=images", "data.image_size=32", "data.batch_size=16", "data.num_workers=0",
    "backbone=resnet20_cifar", "backbone.weights=none", "finetuning.norms=frozen",
    "trainer.max_epochs=3", "trainer.accelerator=cpu",
]  # fmt: skip
CASES = {  # name -> (words, under torchrun, whether the difference has a bound)
    "sgd": (["optimizer=sgd", "optimizer.lr=1e-2"], True, True),
    "adamw_64": (["optimizer=adamw", "optimizer.lr=1e-3", "trainer.precision=64-true"], False, True),
    "adamw_32": (["optimizer=adamw", "optimizer.lr=1e-3"], False, False),
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """The namespaces and the cable between them; both are removed at the end."""
    made = []
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            made.append(host)
        ip("link", "add", "cable_a", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable_b", "netns", HOSTS[1])
        for host, end, address in zip(HOSTS, ("cable_a", "cable_b"), ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in made:
            ip("netns", "delete", host)


def draw(folder: Path) -> None:
    """Two classes of noisy squares, 40 images each."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cold", "warm")):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            image = rng.integers(0, 150, (32, 32, 3)) + 50 * number
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def fit(folder: Path, words: list[str]) -> None:
    """Fit in one process, with the network of this machine."""
    command = [sys.executable, "-m", "finetune", *WORDS, *words]
    subprocess.run(command, cwd=folder, check=True, env=environment(), stdout=subprocess.DEVNULL)


def fit_on_both(folder: Path, words: list[str], *, torchrun: bool) -> float:
    """Fit on both hosts; seconds until both have ended."""
    words = [*WORDS, *words, "trainer.num_nodes=2", "trainer.devices=1"]
    start, processes = time.monotonic(), []
    for number, host in enumerate(HOSTS):
        command, more = [sys.executable, "-m", "finetune", *words], {}
        if torchrun:
            command[1:3] = ["-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={number}", "--nproc_per_node=1",
                            f"--master_addr={ADDRESSES[0]}", f"--master_port={PORT}", "-m", "finetune"]  # fmt: skip
        else:
            more = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT), "WORLD_SIZE": "2"}
            more |= {"RANK": str(number), "LOCAL_RANK": "0", "GROUP_RANK": str(number)}
        exec_there = ["ip", "netns", "exec", host, *command]
        processes.append(subprocess.Popen(exec_there, cwd=folder, env=environment(**more), stdout=subprocess.DEVNULL))
    statuses = [process.wait(300) for process in processes]
    if any(statuses):
        raise SystemExit(f"a host failed: {statuses}")
    return time.monotonic() - start


def largest_difference(folder: Path, one: str, two: str) -> tuple[float, float]:
    """Between two runs: of the weights of their models, and of the probabilities that they predicted for test."""
    a, b = (load_file(folder / name / "model.safetensors") for name in (one, two))
    assert a.keys() == b.keys()
    weights = max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
    tables = [pd.read_csv(folder / name / "predictions_test.csv") for name in (one, two)]
    assert tables[0]["sample"].tolist() == tables[1]["sample"].tolist()
    columns = [name for name in tables[0].columns if name.startswith("prob_")]
    return weights, float((tables[0][columns] - tables[1][columns]).abs().to_numpy().max())


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("Network namespaces need root.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw(folder / "images")
        for name, (words, torchrun, has_bound) in CASES.items():
            fit(folder, [*words, f"hydra.run.dir={name}_one"])
            with two_hosts():
                took = fit_on_both(folder, [*words, f"hydra.run.dir={name}_two"], torchrun=torchrun)
            weights, probabilities = largest_difference(folder, f"{name}_one", f"{name}_two")
            print(f"{name}: {took:.0f} s, weights differ by {weights:.1e}, probabilities by {probabilities:.1e}")
            if has_bound and max(weights, probabilities) > TOLERANCE:
                raise SystemExit(f"{name}: more than {TOLERANCE}")


if __name__ == "__main__":
    main()
