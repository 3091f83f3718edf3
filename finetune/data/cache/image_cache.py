"""Every image decoded and resized once, then read from a memory-mapped file by all processes and later runs."""

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
from finetune.data.cache.store import DiskFull, ImageStore, Printer, file_state, fill_once
from finetune.data.decoding import containers
from finetune.data.decoding.images import read_image, read_size
from finetune.data.table import SampleTable
from finetune.errors import BadImage, FinetuneError, one_of
from finetune.files import write_json_atomic
from finetune.preprocessing import Preprocessing

CHUNK = 256  # images between two progress reports
PROGRESS_SECONDS = 10.0  # seconds between two progress messages


class ImageCache:
    """Images of a table at `preprocessing.stored_size`: `cache[row]` is uint8 (S, S), or (S, S, 3) for all rows if
    any of them is coloured.

    Made by `build`, which reads every file once and records `bad` (row -> why it cannot be read), `digests` (of the
    decoded pixels before resizing, "" for unreadable rows), `extremes` ((N, 2) darkest and brightest value), `sizes`
    ((N, 2) height and width before resizing). With directory="off" nothing is stored and each access decodes the image;
    the results are the same.
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
        """The file of images, None where nothing is stored."""
        self._images: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        table: SampleTable,
        preprocessing: Preprocessing,
        directory: str | Path = "auto",
        workers: int | None = None,
        on_bad: str = "stop",
        *,
        say: Printer | None = None,
        progress: Callable[[int, int], Any] | None = None,
    ) -> ImageCache:
        """Decode all images that are not cached, in `workers` threads (Pillow decodes outside Python's lock).

        `directory` is "off", "auto" ($FINETUNE_CACHE or ~/.cache/finetune, unless that would take more than half of
        the free disk) or a folder. Unreadable images are collected first; then on_bad="stop" raises one error that
        names them and on_bad="skip" leaves them out. `progress` is called with (done, total).
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
            what="Images",
            grows="three times that if coloured",
        )
        cache = cls(files, preprocessing, facts, npy)
        cache.masks = MaskCache.build(table, preprocessing, cache, directory, workers, say)
        if cache.masks is not None:
            cache.bad = {**cache.masks.bad, **cache.unreadable}
        if cache.bad:
            first_reasons = "".join(
                f"\n  {table.paths[row]}: {reason}" for row, reason in sorted(cache.bad.items())[:5]
            )
            with_masks = "or their masks " if len(cache.bad) > len(cache.unreadable) else ""
            count = f"{len(cache.bad):,} of {len(files):,} images {with_masks}cannot be read"
            if on_bad == "stop" or len(cache.bad) == len(files):
                way = "\ndata.on_bad=skip leaves them out." if len(cache.bad) < len(files) else ""
                raise FinetuneError(f"{count}, first:{first_reasons}{way}")
            say(f"{count} and are left out, first:{first_reasons}")
        return cache

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> np.ndarray:  # -> uint8 (S, S) or (S, S, 3), not to be written to
        """The resized image of a row of the table."""
        if row in self.unreadable:
            raise BadImage(self.files[row], self.unreadable[row])
        if self.npy is not None:
            return self._stored()[row]
        image = self.preprocessing.resize(read_image(self.files[row], self.preprocessing.min_decode_side))
        if self.channels == 3 and image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        return image

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:  # -> uint8 (n, S, S) or (n, S, S, 3), a copy
        """Several images at once."""
        if self.npy is None or not self.unreadable.keys().isdisjoint(rows):
            return np.stack([self[int(row)] for row in rows])
        return self._stored()[np.asarray(rows)]

    def near_copies(self) -> list[Pair]:
        """Pairs of near copies (`near_duplicates`), searched once and stored beside the images.

        All processes of a run must get exactly the same pairs, whatever their number of threads. The results of an
        older version of the search are not read.
        """
        file = self.npy.with_name(f"near_{VERSION}.json") if self.npy is not None else None
        if file is not None and file.is_file():
            return [Pair(*pair) for pair in json.loads(file.read_text())]
        pairs = near_duplicates(self, self.digests, self.sizes)
        if file is not None:
            with contextlib.suppress(OSError):  # a cache that may only be read
                write_json_atomic(file, [astuple(pair) for pair in pairs])
        return pairs

    def _stored(self) -> np.ndarray:
        if self._images is None:
            assert self.npy is not None  # the callers look
            self._images = np.asarray(np.load(self.npy, mmap_mode="r"))  # a plain view: memmap's own indexing is slow
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}  # a spawned worker maps the file itself


class _Survey:
    """Reads each file once, into a store if there is one, and collects the facts."""

    def __init__(self, files: list[Path], preprocessing: Preprocessing, workers: int, say: Printer, progress: Callable):
        self.files, self.preprocessing, self.workers = files, preprocessing, workers
        self.say, self.progress = say, progress

    def read_all(self, store: ImageStore | None, stop_when_full: bool = False) -> dict[str, Any]:
        """Facts of all files: channels, digests, bad, extremes, sizes."""
        total = len(self.files)
        channels, bad = 1, {}
        digests, extremes, sizes = [""] * total, [[0, 0]] * total, [[0, 0]] * total
        last_report = time.monotonic()
        with warnings.catch_warnings(), ThreadPoolExecutor(self.workers) as threads:
            for library in ("PIL", "pydicom"):  # of broken headers and the like, without the file's name
                warnings.filterwarnings("ignore", module=library)
            for start in range(0, total, CHUNK):
                block = range(start, min(start + CHUNK, total))
                for row, (image, digest, extreme, size, reason) in zip(
                    block, threads.map(self.read_row, block), strict=True
                ):
                    if image is None:
                        bad[row] = reason
                        continue
                    digests[row], extremes[row], sizes[row] = digest, extreme, size
                    channels = max(channels, 3 if image.ndim == 3 else 1)
                    if store is not None and not store.full:
                        store.put(row, image)
                        if store.full and stop_when_full:
                            raise DiskFull(store.full)
                self.progress(block.stop, total)
                if time.monotonic() - last_report > PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    self.say(f"Decoding images: {block.stop:,} of {total:,}.")
        return {"channels": channels, "digests": digests, "bad": bad, "extremes": extremes, "sizes": sizes}

    def read_row(self, row: int) -> tuple[np.ndarray | None, str, list[int], list[int], str]:
        try:
            image = read_image(self.files[row], self.preprocessing.min_decode_side)
            size = self.stored_size_in_file(self.files[row], image)
        except BadImage as error:
            return None, "", [0, 0], [0, 0], error.reason
        extreme = [int(image.min()), int(image.max())]
        return self.preprocessing.resize(image), pixel_digest(image), extreme, size, ""

    def stored_size_in_file(self, file: Path, image: np.ndarray) -> list[int]:
        """Height and width in the file: a large JPEG was decoded at a fraction of them."""
        if min(image.shape[:2]) < self.preprocessing.min_decode_side or containers.member(file) is not None:
            return list(image.shape[:2])
        return list(read_size(file) or image.shape[:2])


def pixel_digest(image: np.ndarray) -> str:
    """A digest of the decoded pixels, uint8 (H, W) or (H, W, 3), before resizing."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()[:32]


def cache_key(files: Sequence[Path], preprocessing: Preprocessing) -> str:
    """A hash of the files' paths, sizes and times, and of all settings that resizing depends on.

    It includes the time of the last status change: unpacking over old files often keeps size and date.
    """
    import PIL

    p = preprocessing
    digest = hashlib.sha256(f"3 {PIL.__version__} {p.fit} {p.interpolation} {p.stored_size} {p.image_size}".encode())
    container_states: dict[Path, str] = {}  # containers: one look for all the images in them
    for file in files:
        if (member := containers.member(file)) is None:
            text = file_state(file)
        else:
            state = container_states.get(member.file)
            text = state or container_states.setdefault(member.file, file_state(member.file))
            text += f"\x1f{member.key}/{member.number}"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:24]


def _nothing(*_: Any) -> None:
    pass
