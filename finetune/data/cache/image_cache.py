"""Every picture decoded and resized once, then read from a memory-mapped file by all processes and later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.audit.near_duplicates import VERSION, Pair, near_duplicates
from finetune.data.cache.mask_cache import MaskCache
from finetune.data.cache.store import NoRoom, PictureStore, Say, file_state, fill_once
from finetune.data.decoding import containers
from finetune.data.decoding.images import read_picture, read_size
from finetune.data.table import SampleTable
from finetune.errors import BadImage, FinetuneError, one_of
from finetune.files import write_json_atomic
from finetune.preprocessing import Preprocessing

AT_ONCE = 256  # pictures handed to the threads between two reports
TALK_EVERY = 10.0  # seconds between two sentences on how far it is


class PictureCache:
    """Pictures of a table at `preprocessing.stored_size`: `cache[row]` is uint8 (S, S), or (S, S, 3) for all rows as
    soon as one of them is coloured.

    Built by `build`, which reads every file once and so knows: `bad` (row -> why it cannot be read), `digests` (of the
    decoded pixels before resizing, "" for unreadable rows), `extremes` ((N, 2) darkest and brightest value), `sizes`
    ((N, 2) height and width before resizing). With directory="off" nothing is kept and pictures are decoded each time
    they are asked for; the answers are the same.
    """

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, facts: dict[str, Any], npy: Path | None):
        self.files = list(files)
        self.preprocessing = preprocessing
        self.channels: int = facts["channels"]
        self.digests: list[str] = facts["digests"]
        self.unreadable: dict[int, str] = {int(row): reason for row, reason in facts["bad"].items()}
        """Row -> why the image cannot be read."""
        self.masks: MaskCache | None = None
        """The masks of the same rows, where they are a target."""
        self.bad = self.unreadable
        """Rows that nothing takes part with: unreadable ones, and those whose mask cannot be read or does not fit."""
        self.extremes = np.array(facts["extremes"], np.uint8).reshape(-1, 2)
        self.sizes = np.array(facts["sizes"], np.int64).reshape(-1, 2)
        self.npy = npy
        """The file of pictures, None where nothing is kept."""
        self._pictures: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        table: SampleTable,
        preprocessing: Preprocessing,
        directory: str | Path = "auto",
        workers: int | None = None,
        on_bad: str = "stop",
        *,
        say: Say | None = None,
        progress: Callable[[int, int], Any] | None = None,
    ) -> PictureCache:
        """Decode what is not decoded yet, in `workers` threads (Pillow decodes outside Python's lock).

        `directory` is "off", "auto" ($FINETUNE_CACHE or ~/.cache/finetune, unless that would take more than half of
        the free disk) or a folder. Unreadable pictures are collected first; then on_bad="stop" raises one error that
        names them and on_bad="skip" goes on without them. `progress` is called with (done, total).
        """
        if on_bad not in ("stop", "skip"):
            raise one_of("data.on_bad", on_bad, ("stop", "skip"))
        say = say or _nothing
        files = [table.root / path for path in table.paths]
        workers = workers or os.cpu_count() or 1
        survey = _Survey(files, preprocessing, workers, say, progress or _nothing)
        facts, npy = fill_once(
            directory,
            lambda: cache_key(files, preprocessing),
            (len(files), preprocessing.stored_size),
            survey.read_all,
            say,
            what="Pictures",
            grows="three times that if coloured",
        )
        cache = cls(files, preprocessing, facts, npy)
        cache.masks = MaskCache.build(table, preprocessing, cache, directory, workers, say)
        if cache.masks is not None:
            cache.bad = {**cache.masks.bad, **cache.unreadable}
        if cache.bad:
            shown = "".join(f"\n  {table.paths[row]}: {reason}" for row, reason in sorted(cache.bad.items())[:5])
            with_masks = "or their masks " if len(cache.bad) > len(cache.unreadable) else ""
            count = f"{len(cache.bad):,} of {len(files):,} images {with_masks}cannot be read"
            if on_bad == "stop" or len(cache.bad) == len(files):
                way = "\ndata.on_bad=skip goes on without them." if len(cache.bad) < len(files) else ""
                raise FinetuneError(f"{count}, first:{shown}{way}")
            say(f"{count} and are left out, first:{shown}")
        return cache

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> np.ndarray:  # -> uint8 (S, S) or (S, S, 3), not to be written to
        """The resized picture of a row of the table."""
        if row in self.unreadable:
            raise BadImage(self.files[row], self.unreadable[row])
        if self.npy is not None:
            return self._stored()[row]
        picture = self.preprocessing.resize(read_picture(self.files[row], self.preprocessing.enough))
        if self.channels == 3 and picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        return picture

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:  # -> uint8 (n, S, S) or (n, S, S, 3), a copy
        """Several pictures at once."""
        if self.npy is None or not self.unreadable.keys().isdisjoint(rows):
            return np.stack([self[int(row)] for row in rows])
        return self._stored()[np.asarray(rows)]

    def near_copies(self) -> list[Pair]:
        """Pairs of near copies (`near.near_duplicates`), looked for once and kept beside the pictures.

        All processes of a run must see the same pairs, to the last one, whatever their number of threads. What an older
        version of the search left there is not read.
        """
        kept = self.npy.with_name(f"near_{VERSION}.json") if self.npy is not None else None
        if kept is not None and kept.is_file():
            return [Pair(*pair) for pair in json.loads(kept.read_text())]
        found = near_duplicates(self, self.digests, self.sizes)
        if kept is not None:
            with contextlib.suppress(OSError):  # a cache that may only be read
                write_json_atomic(kept, [astuple(pair) for pair in found])
        return found

    def _stored(self) -> np.ndarray:
        if self._pictures is None:
            assert self.npy is not None  # the callers look
            self._pictures = np.asarray(np.load(self.npy, mmap_mode="r"))  # a plain view: memmap's own indexing is slow
        return self._pictures

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pictures": None}  # a spawned worker maps the file itself


class _Survey:
    """Reads each file once, into a store if there is one, and gathers the facts."""

    def __init__(self, files: list[Path], preprocessing: Preprocessing, workers: int, say: Say, progress: Callable):
        self.files, self.preprocessing, self.workers = files, preprocessing, workers
        self.say, self.progress = say, progress

    def read_all(self, store: PictureStore | None, quit_on_no_room: bool = False) -> dict[str, Any]:
        """Facts of all files: channels, digests, bad, extremes, sizes."""
        total = len(self.files)
        channels, bad = 1, {}
        digests, extremes, sizes = [""] * total, [[0, 0]] * total, [[0, 0]] * total
        spoken = time.monotonic()
        with warnings.catch_warnings(), ThreadPoolExecutor(self.workers) as threads:
            for library in ("PIL", "pydicom"):  # of broken headers and the like, without the file's name
                warnings.filterwarnings("ignore", module=library)
            for start in range(0, total, AT_ONCE):
                block = range(start, min(start + AT_ONCE, total))
                for row, (picture, digest, extreme, size, reason) in zip(
                    block, threads.map(self.read_one, block), strict=True
                ):
                    if picture is None:
                        bad[row] = reason
                        continue
                    digests[row], extremes[row], sizes[row] = digest, extreme, size
                    channels = max(channels, 3 if picture.ndim == 3 else 1)
                    if store is not None and not store.full:
                        store.put(row, picture)
                        if store.full and quit_on_no_room:
                            raise NoRoom(store.full)
                self.progress(block.stop, total)
                if time.monotonic() - spoken > TALK_EVERY:
                    spoken = time.monotonic()
                    self.say(f"Decoding pictures: {block.stop:,} of {total:,}.")
        return {"channels": channels, "digests": digests, "bad": bad, "extremes": extremes, "sizes": sizes}

    def read_one(self, row: int) -> tuple[np.ndarray | None, str, list[int], list[int], str]:
        try:
            picture = read_picture(self.files[row], self.preprocessing.enough)
            size = self.size_of(self.files[row], picture)
        except BadImage as error:
            return None, "", [0, 0], [0, 0], error.reason
        digest = hashlib.sha256(repr(picture.shape).encode())
        digest.update(picture.data)
        extreme = [int(picture.min()), int(picture.max())]
        return self.preprocessing.resize(picture), digest.hexdigest()[:32], extreme, size, ""

    def size_of(self, file: Path, picture: np.ndarray) -> list[int]:
        """Height and width in the file: a large JPEG was decoded at a part of them."""
        if min(picture.shape[:2]) < self.preprocessing.enough or containers.member(file) is not None:
            return list(picture.shape[:2])
        return list(read_size(file) or picture.shape[:2])


def cache_key(files: Sequence[Path], preprocessing: Preprocessing) -> str:
    """Names the pictures by their files' place, size and times, and by all that resizing depends on.

    The time of the last change of status is in it: files unpacked over others keep size and date more often than not.
    """
    import PIL

    p = preprocessing
    digest = hashlib.sha256(f"3 {PIL.__version__} {p.fit} {p.interpolation} {p.stored_size} {p.image_size}".encode())
    known: dict[Path, str] = {}  # containers: one look for all the pictures in them
    for file in files:
        if (member := containers.member(file)) is None:
            text = file_state(file)
        else:
            text = known.get(member.file) or known.setdefault(member.file, file_state(member.file))
            text += f"\x1f{member.key}/{member.place}"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:24]


def _nothing(*_: Any) -> None:
    pass
