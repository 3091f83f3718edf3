"""From the data configuration to split, audited, decoded pictures: what every job with a data set begins with."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetune import build
from finetune.data import audit as audits
from finetune.data import near_pairs, splits
from finetune.data.cache import PictureCache
from finetune.data.findings import same
from finetune.data.module import ImageData
from finetune.data.table import SampleTable
from finetune.data.transforms import Augment
from finetune.errors import FinetuneError
from finetune.evaluation.files import write_json_atomic
from finetune.package import Model
from finetune.preprocessing import Preprocessing

Say = Callable[[str], None]
"""Takes a sentence for the user."""


def sayer(first: bool) -> Say:
    """Sentences are printed by the first rank alone."""
    return (lambda sentence: print(sentence, flush=True)) if first else (lambda sentence: None)


def demo(config: dict[str, Any], say: Say) -> None:
    """Make the synthetic chest X-rays where the configuration asks for them."""
    if not config["demo"]:
        return
    from finetune.data.phantom_set import make_phantoms

    say(
        "DEMO: no images at ./data/chestxray, so this run uses SYNTHETIC chest X-ray phantoms and random weights.\n"
        "      Its numbers say that the program works, nothing about patients. For your own images:\n"
        "      data.root=DIR, or data=csv data.table=FILE, or data=folder data.root=DIR.\n"
        f"      Recipe (conf/experiment/demo.yaml; what you type wins): {config['data']['image_size']} px, "
        f"{config['trainer']['max_epochs']} epochs, batches of {config['data']['batch_size']}, full fine-tuning."
    )
    make_phantoms(Path(config["data"]["root"]), seed=0)


def table(config: dict[str, Any], say: Say, *, split: bool = True) -> SampleTable:
    """The sample table, split by patient; the split depends on data.* alone. `split=False` leaves it as it was read."""
    data = config["data"]
    read = build.source(config).table()
    read.check()
    if split:
        read = splits.assign_splits(
            read,
            seed=data["seed"],
            val=data["val_fraction"],
            test=data["test_fraction"],
            folds=data["folds"],
            fold=data["fold"],
        )
    for sentence in read.notes:
        say(sentence)
    return read


check_trainable = audits.check_trainable


def pictures(
    config: dict[str, Any], table: SampleTable, preprocessing: Preprocessing, say: Say, run: Path | None
) -> tuple[SampleTable, PictureCache, audits.Audit]:
    """Every picture decoded once, and the audit of table and pictures, written into `run`; leaks stop here.

    Copies that a split drawn here would tear apart are brought together first, so the table may come back changed.
    """
    data = config["data"]
    early = audits.audit_table(table)
    if run is not None:
        write_json_atomic(run / "audit.json", early.to_dict())
    early.stop_on_leak(data["audit"]["on_leak"], run)
    workers, on_bad = max(1, data["num_workers"]), data["on_bad"]
    with bar("Decoding pictures", run is not None) as progress:
        cache = PictureCache.build(
            table, preprocessing, data["cache"], workers=workers, on_bad=on_bad, say=say, progress=progress
        )
    near = cache.near_copies() if data["audit"]["near"] else []
    copies = [(p.first, p.second) for p in near if p.certainty == "certain"]
    copies += [pair for group in audits.equal_pictures(cache) for pair in pairwise(group)]
    mended = splits.mend(table, copies)
    for sentence in mended.notes[len(table.notes) :]:
        say(sentence)
    found = audits.audit_pictures(audits.audit_table(mended), mended, cache, near)
    if run is not None:
        write_json_atomic(run / "audit.json", found.to_dict())
        if near:
            near_pairs.draw(mended, cache, near, run / near_pairs.SHEET)
    for sentence in found.warnings:
        say(f"audit: {sentence}")
    found.stop_on_leak(data["audit"]["on_leak"], run)
    say(counts(mended))
    return mended, cache, found


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar, where a person looks on: it takes (done, total)."""
    if not (shown and sys.stdout.isatty()):
        yield None
        return
    from rich.progress import Progress

    with Progress(transient=True) as drawn:
        task = drawn.add_task(title, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


def batches(
    config: dict[str, Any],
    table: SampleTable,
    pictures: PictureCache,
    preprocessing: Preprocessing,
    augment: Augment | None = None,
) -> ImageData:
    """The loaders, as the configuration sizes them."""
    data = config["data"]
    return ImageData(
        table,
        pictures,
        preprocessing,
        augment,
        batch_size=data["batch_size"],
        num_workers=data["num_workers"],
        seed=config["seed"],
        sampler=data["sampler"],
    )


def counts(table: SampleTable) -> str:
    """One line: images and patients per split."""
    parts = []
    for split in ("train", "val", "test"):
        rows = table.frame[table.frame["split"] == split]
        if len(rows):
            people = f" of {rows['patient'].nunique():,} patients" if table.has_patients else ""
            parts.append(f"{split} {len(rows):,} images{people}")
    return f"{table.name}: " + ", ".join(parts) + f"; {len(table.classes)} classes ({table.kind})."


def renamed(table: SampleTable, classes: list[str], kind: str) -> SampleTable:
    """The table in a model's classes: those it does not label are unknown, not negative. Findings meet by their shared
    name, so that a table of your own with `Pleural Effusion` serves a model that calls it Effusion.

    Raises:
        FinetuneError: no class in common, or labels of another kind.
    """
    if table.kind != kind:
        raise FinetuneError(f"The model's labels are {kind}, the data set's are {table.kind}: they cannot be compared.")
    if kind == "multilabel":
        table = _in_names_of(classes, table)
    common = [name for name in classes if name in table.classes]
    if not common:
        raise FinetuneError(f"The model knows {classes}, the data set labels {table.classes}: no class in common.")
    if kind == "multiclass" and set(table.classes) - set(classes):
        raise FinetuneError(
            f"The data set has classes that the model does not know: {set(table.classes) - set(classes)}."
        )
    frame = table.frame.drop(columns=[f"target_{name}" for name in table.classes if name not in classes])
    for name in classes:
        if name not in table.classes:
            frame[f"target_{name}"] = 0.0 if kind == "multiclass" else float("nan")
    return replace(table, frame=frame, classes=list(classes))


def asked(config: dict[str, Any], model: Model, say: Say) -> tuple[SampleTable, str]:
    """The table in the classes of a finished model, and the split of it that `split` asks for: all is put into test.

    Raises:
        FinetuneError: the split is empty.
    """
    split = config["split"]
    read = renamed(table(config, say, split=split != "all"), model.classes, model.kind)
    if split == "all":
        return read.with_split(["test"] * len(read)), "test"
    if not len(read.rows(split)):
        raise FinetuneError(f"split={split} is empty in this data set. Choose another, or split=all.")
    return read, split


def _in_names_of(classes: list[str], table: SampleTable) -> SampleTable:
    """The table with its findings called as in `classes`, where exactly one of them means the same."""
    of: dict[str, str] = {}
    for name in [name for name in table.classes if name not in classes]:
        alike = [other for other in classes if same(name, other) and other not in table.classes]
        if len(alike) == 1 and alike[0] not in of.values():
            of[name] = alike[0]
    columns = {f"target_{name}": f"target_{other}" for name, other in of.items()}
    return replace(table, frame=table.frame.rename(columns=columns), classes=[of.get(n, n) for n in table.classes])
