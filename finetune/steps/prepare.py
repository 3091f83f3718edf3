"""From the data configuration to split, audited, decoded pictures: what every job with a data set begins with."""

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from finetune.config.settings import AuditSettings, DataSettings
from finetune.data import splits
from finetune.data.audit import audit as audits
from finetune.data.audit import near_pairs
from finetune.data.cache.image_cache import ImageCache
from finetune.data.loading.augment import Augment
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.data.targets import types_in_words
from finetune.errors import FinetuneError
from finetune.files import write_json_atomic
from finetune.model_file import Model
from finetune.preprocessing import Preprocessing
from finetune.runs import known_images
from finetune.runs.folder import RunFolder
from finetune.steps.task import Task

TALK_EVERY = 10.0  # seconds between two lines on how far a job is

Say = Callable[[str], None]
"""Takes a sentence for the user."""


def sayer(first: bool) -> Say:
    """Sentences are printed by the first rank alone."""
    return (lambda sentence: print(sentence, flush=True)) if first else (lambda sentence: None)


def make_demo_images(data: DataSettings, max_epochs: int, say: Say) -> None:
    """Make the synthetic chest X-rays."""
    from finetune.data.phantom.dataset import make_phantoms

    say(
        "DEMO: no images at ./data/chestxray, so this run uses SYNTHETIC chest X-ray phantoms and random weights.\n"
        "      Its numbers say that the program works, nothing about patients. For your own images:\n"
        "      data.root=DIR, or data=csv data.table=FILE, or data=folder data.root=DIR.\n"
        f"      Recipe (conf/experiment/demo.yaml; what you type wins): {data.image_size} px, "
        f"{max_epochs} epochs, batches of {data.batch_size}, full fine-tuning."
    )
    make_phantoms(Path(str(data.root)), seed=0)


def table(
    read: SampleTable, data: DataSettings, say: Say, *, split: bool = True, recorded: RunFolder | None = None
) -> SampleTable:
    """The sample table as it was `read` from the source, split by patient unless `split=False`; the split depends on
    data.* alone; `recorded` is the folder of the fit whose split it is."""
    read.check()
    if split:
        read = splits.assign_splits(
            read,
            seed=data.seed,
            val=data.val_fraction,
            test=data.test_fraction,
            folds=data.folds,
            fold=data.fold,
        )
        if recorded is not None:
            read = known_images.recorded_split(recorded, read, data.arguments)
    for sentence in read.notes:
        say(sentence)
    return read


def images(
    data: DataSettings, table: SampleTable, preprocessing: Preprocessing, say: Say, run: RunFolder | None
) -> tuple[SampleTable, ImageCache, audits.Audit]:
    """Every picture decoded once, and the audit of table and pictures, written into `run`; leaks stop here.

    Copies that a split drawn here would tear apart are brought together first, so the table may come back changed.
    """
    early = audits.audit_table(table)
    if run is not None:
        write_json_atomic(run.audit, early.to_dict())
    early.stop_on_leak(data.audit.on_leak, None if run is None else run.path)
    workers, on_bad = max(1, data.num_workers), data.on_bad
    with bar("Decoding pictures", run is not None) as progress:
        cache = ImageCache.build(
            table, preprocessing, data.cache, workers=workers, on_bad=on_bad, say=say, progress=progress
        )
    same = audit_key(table, cache, data.audit)
    if _audits is not None and same in _audits:
        return _repeated(*_audits[same], cache, say, run)
    near = cache.near_copies() if data.audit.near else []
    copies = [(p.first, p.second) for p in near if p.certainty == "certain"]
    copies += [pair for group in audits.equal_images(cache) for pair in pairwise(group)]
    mended = splits.keep_copies_together(table, copies)
    for sentence in mended.notes[len(table.notes) :]:
        say(sentence)
    found = audits.audit_images(audits.audit_table(mended), mended, cache, near)
    if run is not None:
        write_json_atomic(run.audit, found.to_dict())
        if near:
            near_pairs.draw(mended, cache, near, run.near_copies)
    for sentence in found.warnings:
        say(f"audit: {sentence}")
    found.stop_on_leak(data.audit.on_leak, None if run is None else run.path)
    say(counts(mended))
    if _audits is not None:
        _audits[same] = (mended, found, run)
    return mended, cache, found


_audits: dict[tuple[str, ...], tuple[SampleTable, audits.Audit, RunFolder | None]] | None = None


@contextmanager
def auditing_once() -> Iterator[None]:
    """Inside, what several runs read alike is audited by the first of them alone."""
    global _audits
    _audits = {}
    try:
        yield
    finally:
        _audits = None


def audit_key(table: SampleTable, cache: ImageCache, settings: AuditSettings) -> tuple[str, ...]:
    """Equal where an audit would find the same: the same table and splits, pixels, size and settings."""
    p = cache.preprocessing
    pixels = hashlib.sha256("".join(cache.digests).encode()).hexdigest()
    return table.hash(), pixels, f"{p.fit} {p.interpolation} {p.stored_size} {p.image_size}", repr(settings)


def _repeated(
    mended: SampleTable,
    found: audits.Audit,
    first: RunFolder | None,
    cache: ImageCache,
    say: Say,
    run: RunFolder | None,
) -> tuple[SampleTable, ImageCache, audits.Audit]:
    """An audit that the run in `first` has made already: its files once more, of its sentences the number."""
    if run is not None and first is not None:
        write_json_atomic(run.audit, found.to_dict())
        if first.near_copies.is_file():
            shutil.copyfile(first.near_copies, run.near_copies)
        say(f"audit: the same data as in {first.path.name}, where {len(found.warnings)} warning(s) stand.")
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


@contextmanager
def progress(title: str, say: Say) -> Iterator[Callable[[int, int], None]]:
    """Takes (done, total): a bar where a person looks on, else a line every ten seconds."""
    begun = spoken = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal spoken
        if (now := time.monotonic()) - spoken >= TALK_EVERY and done < total:
            say(f"  {done:,} of {total:,} images after {now - begun:.0f} s")
            spoken = now

    with bar(title, True) as drawn:
        yield drawn or line


def batches(
    data: DataSettings,
    seed: int,
    table: SampleTable,
    images: ImageCache,
    preprocessing: Preprocessing,
    augment: Augment | None = None,
) -> ImageData:
    """The loaders, as the configuration sizes them."""
    return ImageData(
        table,
        images,
        preprocessing,
        augment,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        seed=seed,
        sampler=data.sampler,
    )


def counts(table: SampleTable) -> str:
    """One line: images and patients per split; a table of one split alone does not name it."""
    parts = []
    for split in ("train", "val", "test"):
        rows = table.frame[table.frame["split"] == split]
        if len(rows):
            people = f" of {rows['patient'].nunique():,} patients" if table.has_patients else ""
            parts.append(f"{split} {len(rows):,} images{people}".removeprefix(f"{split} " * (len(rows) == len(table))))
    learned = [f"{len(table.classes)} classes ({table.kind})"] if table.classes or not table.other_targets else []
    learned += [types_in_words(table.other_targets)] if table.other_targets else []
    return f"{table.name}: " + ", ".join(parts) + f"; {', '.join(learned)}."


def asked(
    task: Task, source: SampleTable, split: str | None, data: DataSettings, model: Model, say: Say
) -> tuple[SampleTable, str, str]:
    """The table in the classes of a finished model, and the split of it that `split` asks for, twice: where it is in
    the table, and what it is called. All images are put into test, and called all.

    Where no split is asked for, it is test of the model's own data and all of any other.

    Raises:
        FinetuneError: the split is empty, or the classes do not meet.
    """
    own = model.path is not None and known_images.is_table_of_fit(model, source)
    if not_asked := split is None:
        split = "test" if own else "all"
    recorded = RunFolder.of_model(model) if own else None
    read = table(source, data, say, split=split != "all", recorded=recorded)
    named = task.match(read, model)
    for sentence in named.notes[len(read.notes) :]:
        say(sentence)
    if split == "all":
        if not_asked:
            say(f"All {len(named):,} images are asked about: these are not the model's own data.")
        return named.with_split(["test"] * len(named)), "test", split
    if not (n := len(named.rows(split))):
        raise FinetuneError(f"split={split} is empty in this data set. Choose another, or split=all.")
    say(f"{n:,} of {len(named):,} images are asked about (split={split}); split=all takes all of them.")
    return named, split, split
