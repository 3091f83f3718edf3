"""The training of a fit whose first parts are frozen: their activations stored, against computed in every epoch.

    python -m benchmarks.frozen_cache data=csv data.table=TABLE data.label=label [key=value ...] [--pairs 3]

Each round trains both from the same weights (stored first, then computed, then the other way round), without
augmentation, validation after each epoch included; what is stored is computed anew in each. The ratio is formed within
the round. The weights must be equal to the last bit. Writes the section "Frozen parts" of RESULTS.md.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.results import machine, write_section
from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, training
from finetune.training.launch import ranks

PLANS = {
    "linear probe": ["finetuning=linear_probe"],
    "frozen through stage3": ["finetuning=full", "finetuning.phases.full.train=[last,new]"],
}


def fit(settings, table, images, preprocessing) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds of a training, and its weights."""
    task = build.task(settings)
    _, network, _, _ = training.make_network(settings, task.num_outputs(table), lambda sentence: None)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, preprocessing, build.augment(settings))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        training.train(settings, RunFolder(Path(folder)), task, network, data, lambda sentence: None, ranks.Place())
        took = time.perf_counter() - start
        state = torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return took, state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("words", nargs="*")
    given, more = parser.parse_known_args()
    home = os.environ.get("FINETUNE_CACHE")
    words = [*given.words, *more, "transforms=none"]
    rows = [
        "| plan | epochs | computed, s | stored, s | times as fast: median [least, most] |",
        "|---|---|---|---|---|",
    ]
    for name, plan in PLANS.items():
        settings = parse(compose.plain(compose.compose([*words, *plan])))
        table = prepare.load_table(build.source(settings).table(), settings.data, print)
        preprocessing = build.preprocessing(settings, None)
        table, images, _ = prepare.decode_and_audit(settings.data, table, preprocessing, print, None)
        seconds: dict[str, list[float]] = {"auto": [], "off": []}
        for round_number in range(given.pairs):
            states = {}
            for mode in ("auto", "off") if round_number % 2 == 0 else ("off", "auto"):
                with tempfile.TemporaryDirectory() as cache:
                    os.environ["FINETUNE_CACHE"] = cache
                    chosen = settings.model_copy(update={"frozen_cache": mode})
                    took, states[mode] = fit(chosen, table, images, preprocessing)
                os.environ.pop("FINETUNE_CACHE")
                if home is not None:
                    os.environ["FINETUNE_CACHE"] = home
                seconds[mode].append(took)
            different = [key for key, value in states["off"].items() if not torch.equal(value, states["auto"][key])]
            assert not different, different
        ratios = sorted(off / auto for off, auto in zip(seconds["off"], seconds["auto"], strict=True))
        medians = {mode: statistics.median(values) for mode, values in seconds.items()}
        row = f"| {name} | {settings.trainer.max_epochs} | {medians['off']:.1f} | {medians['auto']:.1f} "
        rows.append(row + f"| {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] |")
        print(rows[-1], flush=True)
    names = {"data.table": "TABLE", "data.root": "DIR"}  # places of this machine say nothing
    typed = [word.partition("=") for word in [*given.words, *more]]
    shown = " ".join(f"{key}={names.get(key, value)}" for key, _, value in typed)
    command = f"`python -m benchmarks.frozen_cache {shown} --pairs {given.pairs}`"
    head = f"{command}: weights equal to the last bit.\n{machine()}\n\n"
    write_section("Frozen parts", head + "\n".join(rows))


if __name__ == "__main__":
    main()
