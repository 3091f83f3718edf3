"""From the data configuration to split, audited, decoded images: the first steps of every job with a data set."""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from finetune.config.settings import AuditSettings, DataSettings
from finetune.data import splits
from finetune.data.audit import audit as audits
from finetune.data.audit import near_pairs
from finetune.data.cache.image_cache import ImageCache
from finetune.data.loading.augment import Augment
from finetune.data.loading.mixing import Mixing
from finetune.data.loading.module import ImageData
from finetune.data.phantom.dataset import is_phantom
from finetune.data.table import SampleTable
from finetune.data.targets import types_in_words
from finetune.errors import FinetuneError
from finetune.files import write_json_atomic
from finetune.model_file import Model
from finetune.preprocessing import Preprocessing
from finetune.runs import known_images
from finetune.runs.folder import RunFolder
from finetune.steps.task import Task

PROGRESS_SECONDS = 10.0  # seconds between two lines of progress

DEMOS = {"class": "", "mask": "_segment", "boxes": "_detect"}
"""Target of the data -> ending of the demo's name."""

Say = Callable[[str], None]
"""Takes a sentence for the user."""


def make_printer(first: bool) -> Say:
    """A function that prints sentences on the first rank only."""
    return (lambda sentence: print(sentence, flush=True)) if first else (lambda sentence: None)


def make_demo_images(data: DataSettings, max_epochs: int, say: Say) -> None:
    """Make the synthetic chest X-rays."""
    from finetune.data.phantom.dataset import make_phantoms

    annotated = data.target != "class"
    why = "" if annotated else "no images at ./data/chestxray, so "
    say(
        f"DEMO: {why}this run uses SYNTHETIC chest X-ray phantoms and random weights.\n"
        "      Its numbers say that the program works, nothing about patients. For your own images:\n"
        "      data.root=DIR, or data=csv data.table=FILE, or data=folder data.root=DIR.\n"
        f"      Recipe (conf/experiment/demo{DEMOS[data.target]}.yaml; what you type wins): {data.image_size} px, "
        f"{max_epochs} epochs, batches of {data.batch_size}, full fine-tuning."
    )
    make_phantoms(Path(str(data.root)), seed=0, masks=annotated)


def load_table(
    table: SampleTable, data: DataSettings, say: Say, *, split: bool = True, recorded: RunFolder | None = None
) -> SampleTable:
    """The sample table of the source, checked, and split by patient unless `split=False`.

    The split depends on data.* alone. `recorded` is the folder of a fit whose split is used again.
    """
    table.check()
    if not table.synthetic and is_phantom(table.root) is not None:
        table = replace(table, synthetic=True)  # whatever source has read it
    if split:
        table = splits.assign_splits(
            table,
            seed=data.seed,
            val=data.val_fraction,
            test=data.test_fraction,
            folds=data.folds,
            fold=data.fold,
        )
        if recorded is not None:
            table = known_images.recorded_split(recorded, table, data.arguments)
    for sentence in table.notes:
        say(sentence)
    return table


def decode_and_audit(
    data: DataSettings, table: SampleTable, preprocessing: Preprocessing, say: Say, run: RunFolder | None
) -> tuple[SampleTable, ImageCache, audits.Audit]:
    """Every image decoded once, and the audit of table and images, written into `run`; leaks stop here.

    Copies that a generated split would separate are moved into one split first, so the returned table may differ.
    """
    table_audit = audits.audit_table(table)
    if run is not None:
        write_json_atomic(run.audit, table_audit.to_dict())
    table_audit.stop_on_leak(data.audit.on_leak, None if run is None else run.path)
    workers, on_bad = max(1, data.num_workers), data.on_bad
    with progress_bar("Decoding images", run is not None) as progress:
        cache = ImageCache.build(
            table, preprocessing, data.cache, workers=workers, on_bad=on_bad, say=say, progress=progress
        )
    key = audit_key(table, cache, data.audit)
    if _audits is not None and key in _audits:
        return _reuse_audit(*_audits[key], cache, say, run)
    near = cache.near_copies() if data.audit.near else []
    copies = [(p.first, p.second) for p in near if p.certainty == "certain"]
    copies += [pair for group in audits.equal_images(cache) for pair in pairwise(group)]
    regrouped = splits.keep_copies_together(table, copies)
    for sentence in regrouped.notes[len(table.notes) :]:
        say(sentence)
    audit = audits.audit_images(audits.audit_table(regrouped), regrouped, cache, near)
    if run is not None:
        write_json_atomic(run.audit, audit.to_dict())
        if near:
            near_pairs.draw(regrouped, cache, near, run.near_copies)
    for sentence in audit.warnings:
        say(f"audit: {sentence}")
    audit.stop_on_leak(data.audit.on_leak, None if run is None else run.path)
    say(split_summary(regrouped))
    if _audits is not None:
        _audits[key] = (regrouped, audit, run)
    return regrouped, cache, audit


_audits: dict[tuple[str, ...], tuple[SampleTable, audits.Audit, RunFolder | None]] | None = None


@contextmanager
def auditing_once() -> Iterator[None]:
    """Inside, data shared by several runs are audited by the first of them only; of nested blocks the outer holds."""
    global _audits
    if _audits is not None:
        yield
        return
    _audits = {}
    try:
        yield
    finally:
        _audits = None


def audit_key(table: SampleTable, cache: ImageCache, settings: AuditSettings) -> tuple[str, ...]:
    """Equal where audits would be equal: the same table and splits, pixels, size and settings."""
    p = cache.preprocessing
    pixels = hashlib.sha256("".join(cache.digests).encode()).hexdigest()
    return table.hash(), pixels, f"{p.fit} {p.interpolation} {p.stored_size} {p.image_size}", repr(settings)


def _reuse_audit(
    table: SampleTable,
    audit: audits.Audit,
    earlier_run: RunFolder | None,
    cache: ImageCache,
    say: Say,
    run: RunFolder | None,
) -> tuple[SampleTable, ImageCache, audits.Audit]:
    """Use the audit of `earlier_run`: copies its files, prints only the number of its warnings."""
    if run is not None and earlier_run is not None:
        write_json_atomic(run.audit, audit.to_dict())
        if earlier_run.near_copies.is_file():
            shutil.copyfile(earlier_run.near_copies, run.near_copies)
        say(f"audit: the same data as in {earlier_run.path.name}, which lists {len(audit.warnings)} warning(s).")
    say(split_summary(table))
    return table, cache, audit


@contextmanager
def progress_bar(title: str, visible: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, with images per second and the time left, else None; it takes (done, total)."""
    if not (visible and sys.stdout.isatty()):
        yield None
        return
    from rich.progress import Progress, TextColumn

    columns = [*Progress.get_default_columns(), TextColumn("{task.fields[rate]}")]
    with Progress(*columns, transient=True) as display:
        task = display.add_task(title, total=None, rate="")

        def show(done: int, total: int) -> None:
            speed = display.tasks[0].speed
            rate = "" if speed is None else f"{speed:,.0f} images/s"
            display.update(task, completed=done, total=total, rate=rate)

        yield show


@contextmanager
def report_progress(title: str, say: Say) -> Iterator[Callable[[int, int], None]]:
    """Takes (done, total): shows a bar on a terminal, else prints a line every ten seconds. Rate and time left are of
    what is done since the first call."""
    start = last_report = time.monotonic()
    done_before: int | None = None

    def print_line(done: int, total: int) -> None:
        nonlocal last_report, done_before
        done_before = done if done_before is None else done_before
        if (now := time.monotonic()) - last_report >= PROGRESS_SECONDS and done < total:
            rate = (done - done_before) / (now - start)
            left = f" ({rate:,.3g} images/s, {duration((total - done) / rate)} left)" if rate else ""
            say(f"  {done:,} of {total:,} images after {now - start:.0f} s{left}")
            last_report = now

    with progress_bar(title, True) as show:
        yield show or print_line


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h"""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def make_datamodule(
    data: DataSettings,
    seed: int,
    table: SampleTable,
    images: ImageCache,
    preprocessing: Preprocessing,
    augment: Augment | None = None,
    mixing: Mixing | None = None,
) -> ImageData:
    """The data module, with the batch size, workers and progressive sizes of the configuration."""
    return ImageData(
        table,
        images,
        preprocessing,
        augment,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        seed=seed,
        sampler=data.sampler,
        versions=data.versions,
        mixing=mixing,
        progressive=data.progressive.schedule,
    )


def split_summary(table: SampleTable) -> str:
    """One line: images and patients per split; the only split of a table is not named."""
    parts = []
    for split in ("train", "val", "test"):
        rows = table.frame[table.frame["split"] == split]
        if len(rows):
            patients = f" of {rows['patient'].nunique():,} patients" if table.has_patients else ""
            parts.append(
                f"{split} {len(rows):,} images{patients}".removeprefix(f"{split} " * (len(rows) == len(table)))
            )
    learned = [f"{len(table.classes)} classes ({table.kind})"] if table.classes or not table.other_targets else []
    learned += [types_in_words(table.other_targets)] if table.other_targets else []
    return f"{table.name}: " + ", ".join(parts) + f"; {', '.join(learned)}."


def select_split(
    task: Task, source: SampleTable, split: str | None, data: DataSettings, model: Model, say: Say
) -> tuple[SampleTable, str, str]:
    """The table in the classes of a finished model, the name of the requested split in it, and its name in the run.

    The two names differ for split=all: its images are in the table's test split. Without `split`, it is test for the
    data that the model was fitted on, and all for other data.

    Raises:
        FinetuneError: the split is empty, or the classes have nothing in common.
    """
    is_own_data = model.path is not None and known_images.is_table_of_fit(model, source)
    if is_default := split is None:
        split = "test" if is_own_data else "all"
    recorded = RunFolder.of_model(model) if is_own_data else None
    loaded = load_table(source, data, say, split=split != "all", recorded=recorded)
    matched = task.match(loaded, model)
    for sentence in matched.notes[len(loaded.notes) :]:
        say(sentence)
    if split == "all":
        if is_default:
            say(f"All {len(matched):,} images are evaluated: these are not the data of the model's fit.")
        return matched.with_split(["test"] * len(matched)), "test", split
    if not (n := len(matched.rows(split))):
        raise FinetuneError(f"split={split} is empty in this data set. Choose another, or split=all.")
    say(f"{n:,} of {len(matched):,} images are evaluated (split={split}); split=all takes all of them.")
    return matched, split, split
