"""The recorded data of a run, compared with what its source reads when the run is resumed."""

import pandas as pd

from finetune.data.cache.image_cache import ImageCache
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.runs import known_images
from finetune.runs.folder import RunFolder

MAX_NAMES = 3  # names in a message


def table_hash(run: RunFolder) -> str | None:
    """The sample table's hash as the run recorded it before training; None if it stopped earlier."""
    return (run.read_environment().get("data") or {}).get("hash")


def check_samples(run: RunFolder, table: SampleTable) -> None:
    """Check, before decoding, that every image of the run is still in the table.

    Raises:
        FinetuneError: naming images that are gone.
    """
    recorded = _samples(run)
    if recorded is not None:
        _refuse(run, _gone(recorded, set(table.paths)))


def check_data(run: RunFolder, table: SampleTable, images: ImageCache) -> None:
    """Check that the table, its splits and its pixels are those of the run.

    Raises:
        FinetuneError: naming what changed.
    """
    readable = table.frame.loc[~table.frame.index.isin(images.bad), ["path", "patient", "split"]]
    readable = readable.assign(digest=known_images.digests(images)).astype(str).set_index("path")
    recorded = _samples(run)
    changes = []
    if recorded is not None:
        new = [name for name in readable.index if name not in recorded.index]
        changes = [*_gone(recorded, set(readable.index)), *([f"{_count(new)} new"] if new else [])]
        now, then = readable.reindex(recorded.index), recorded
        for column, what in (("patient", "another patient"), ("digest", "other pixels"), ("split", "another split")):
            differing = [str(name) for name in recorded.index[(now[column] != then[column]) & now[column].notna()]]
            if differing and not (column == "split" and changes):  # a changed table has another split anyway
                changes.append(f"{_count(differing)} with {what}")
    if not changes and table.hash() != table_hash(run):
        changes = ["other labels, classes, metadata or order of rows"]
    _refuse(run, changes)


def _samples(run: RunFolder) -> pd.DataFrame | None:
    """samples.csv by path, in text; None where the run was stopped before it wrote it.

    Raises:
        FinetuneError: a file that cannot be read.
    """
    path = run.samples
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[known_images.COLUMNS].set_index("sample")
    except (ValueError, KeyError) as error:
        raise FinetuneError(f"{path} cannot be read: {str(error).splitlines()[0]}. Begin a new fit.") from None


def _gone(recorded: pd.DataFrame, names: set[str]) -> list[str]:
    gone = [str(name) for name in recorded.index if name not in names]
    return [f"{_count(gone)} gone"] if gone else []


def _count(names: list[str]) -> str:
    first = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return f"{len(names):,} image{'' if len(names) == 1 else 's'} ({first})"


def _refuse(run: RunFolder, changes: list[str]) -> None:
    if changes:
        raise FinetuneError(
            f"resume={run}: the data are not those that the run was trained with: {'; '.join(changes)}. Test images "
            "may have become training images. Restore the data, or begin a new fit."
        )
