"""job=evaluate: a finished model on a split of its own data or on another data set."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune import build, package
from finetune.errors import FinetuneError, one_of
from finetune.evaluation.files import write_json_atomic
from finetune.jobs import prepare, run_folder, scoring
from finetune.training import ranks

SPLITS = ("train", "val", "test", "all")


def evaluate(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Load, read the data as for a fit, predict, and write predictions and scores."""
    first = ranks.rank() == 0
    say = prepare.sayer(first)
    split = config["split"]
    if split not in SPLITS:
        raise one_of("split", split, SPLITS)
    build.check_data(config["data"])
    model = package.load(config["model"])
    if first:
        run_folder.begin(run, config, words)
    table = prepare.renamed(prepare.table(config, say, split=split != "all"), model.classes, model.kind)
    if split == "all":
        table = table.with_split(["test"] * len(table))
    elif not len(table.rows(split)):
        raise FinetuneError(f"split={split} is empty in this data set. Choose another, or split=all.")
    table, pictures, _ = prepare.pictures(config, table, model.preprocessing, say, run if first else None)
    data = prepare.batches(config, table, pictures, model.preprocessing)
    n_ranks = ranks.count(config["trainer"]["devices"], config["trainer"]["accelerator"])
    with ranks.launched(run, n_ranks), ranks.group(n_ranks):
        wanted = "test" if split == "all" else split
        found = scoring.predictions(model.network, data, wanted, config["trainer"]["accelerator"])
        if dist.is_initialized():
            dist.barrier()
    if not first:
        return
    run_folder.note(run, model={"path": str(config["model"]), "weights_hash": model.weights_hash}, notes=table.notes)
    scores = scoring.write(run, {split: found}, seed=config["seed"])
    write_json_atomic(run / "scores.json", scores)
    scoring.show(scores, table, say)
    say(f"predictions and scores: {run}")
