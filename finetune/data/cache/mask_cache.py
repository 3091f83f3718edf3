"""Every mask decoded once and placed in the square of its image, then read from a memory-mapped file."""

from __future__ import annotations

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.annotations import MaskFile, Regions
from finetune.data.cache.store import DiskFull, ImageStore, Printer, file_state, fill_once
from finetune.data.decoding import containers
from finetune.data.table import SampleTable
from finetune.errors import BadImage, FinetuneError
from finetune.preprocessing import Preprocessing

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import ImageCache

VERSION = 1  # of what is stored
AT_ONCE = 256  # masks handed to the threads at a time


class MaskCache:
    """The masks of a table as its images are cached: `masks[row]` is uint8 (S, S), S = preprocessing.stored_size, all 0
    where none is known. Pixels are taken, never mixed, so that bit fields and region numbers survive.

    Args:
        sizes: (N, 2) height and width of every stored image; a row of 0 has no image to go with.
        facts: of an earlier look at all masks, with `npy`, the file of squares; without them masks are decoded each
            time, and `bad` and `pixels` are empty.
    """

    def __init__(
        self,
        table: SampleTable,
        preprocessing: Preprocessing,
        sizes: np.ndarray,
        facts: dict[str, Any] | None = None,
        npy: Path | None = None,
    ):
        name = next(name for name, target_type in table.other_targets.items() if target_type == "mask")
        assert table.regions is not None  # the table's check
        self.entries = [entry if isinstance(entry, MaskFile) else None for entry in table.annotations[name]]
        self.regions: Regions = table.regions
        self.root, self.preprocessing, self.sizes = table.root, preprocessing, sizes
        unknown = np.zeros(len(self.regions), bool)
        self.known = np.array([unknown if entry is None else entry.known(self.regions) for entry in self.entries])
        """(N, K) bool: whether something is known of each region."""
        facts = facts or {"bad": {}, "pixels": []}
        self.bad: dict[int, str] = {int(row): reason for row, reason in facts["bad"].items()}
        """Row -> why its mask cannot be used."""
        self.pixels = np.array(facts["pixels"], np.int64).reshape(-1, len(self.regions))
        """(N, K) pixels of each region in the square."""
        self.npy = npy
        self._squares: np.ndarray | None = None

    @classmethod
    def build(
        cls,
        table: SampleTable,
        preprocessing: Preprocessing,
        images: ImageCache,
        directory: str | Path,
        workers: int,
        say: Printer,
    ) -> MaskCache | None:
        """The masks that are a target of the table, each read and compared with its image; None where none is.

        `directory` is that of ImageCache.build. What is wrong with a mask is no error here but stands in `bad`.
        """
        if "mask" not in table.other_targets.values():
            return None
        plain = cls(table, preprocessing, images.sizes)

        def read_all(store: ImageStore | None, stop_when_full: bool = False) -> dict[str, Any]:
            return plain._read_all(store, stop_when_full, workers)

        shape = len(table), preprocessing.stored_size
        facts, npy = fill_once(directory, plain.key, shape, read_all, say, what="Masks")
        masks = cls(table, preprocessing, images.sizes, facts, npy)
        say(masks.in_words())
        return masks

    def in_words(self) -> str:
        """How many masks are known, and how many of them mark nothing."""
        rows = np.setdiff1d(np.flatnonzero(self.known.any(axis=1)), list(self.bad))
        empty = int((~self.shown[rows].any(axis=1)).sum())
        return f"Masks of {', '.join(self.regions.names)}: {len(rows):,} known, {empty:,} of them empty."

    @property
    def shown(self) -> np.ndarray:  # (N, K) bool
        """Whether a region is in an image, as far as is known; never the background."""
        first = int(not self.regions.overlapping)
        return self.known & (self.pixels > 0) & (np.arange(len(self.regions)) >= first)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, row: int) -> np.ndarray:  # -> uint8 (S, S), not to be written to
        if self.npy is None:
            return self._decode(row)
        if self._squares is None:
            self._squares = np.asarray(np.load(self.npy, mmap_mode="r"))
        return self._squares[row]

    def key(self) -> str:
        """Names the squares by what the masks are read from, the regions, and where each image lies in its square."""
        p = self.preprocessing
        digest = hashlib.sha256(f"masks {VERSION} {p.fit} {p.stored_size} {p.image_size}".encode())
        digest.update(f"\x1e{self.regions.content()}\x1e".encode())
        digest.update(np.ascontiguousarray(self.sizes, "<i8").tobytes())
        states: dict[Path, str] = {}  # of containers
        for entry in self.entries:
            text = "\x00" if entry is None else entry.content()
            for path in () if entry is None else entry.paths:
                member = containers.member(self.root / path)
                if member is None:
                    text += file_state(self.root / path)
                else:
                    text += states.get(member.file) or states.setdefault(member.file, file_state(member.file))
            digest.update(text.encode("utf-8", "surrogateescape"))
        return f"masks-{digest.hexdigest()[:24]}"

    def _decode(self, row: int) -> np.ndarray:
        entry, (height, width) = self.entries[row], (int(side) for side in self.sizes[row])
        side = self.preprocessing.stored_size
        if entry is None or not height:
            return np.zeros((side, side), np.uint8)
        mask = entry.read(self.root, self.regions, (height, width))
        return self.preprocessing.cached_placement(height, width).mask_to_square(mask)

    def _read_one(self, row: int) -> tuple[np.ndarray, str]:
        """The square, or why there is none."""
        try:
            return self._decode(row), ""
        except BadImage as error:
            path = Path(error.path)
            place = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else error.path
            return np.zeros((0, 0), np.uint8), f"its mask {place} {error.reason}"
        except FinetuneError as error:
            return np.zeros((0, 0), np.uint8), f"its mask: {error}"

    def _read_all(self, store: ImageStore | None, stop_when_full: bool, workers: int) -> dict[str, Any]:
        bad: dict[int, str] = {}
        pixels = np.zeros(self.known.shape, np.int64)
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as threads:
            warnings.filterwarnings("ignore", module="PIL")
            for start in range(0, len(self), AT_ONCE):
                block = range(start, min(start + AT_ONCE, len(self)))
                for row, (square, reason) in zip(block, threads.map(self._read_one, block), strict=True):
                    if reason:
                        bad[row] = reason
                        continue
                    pixels[row] = self.regions.bits(square).sum(axis=(1, 2))
                    if store is not None and not store.full:
                        store.put(row, square)
                        if store.full and stop_when_full:
                            raise DiskFull(store.full)
        return {"bad": bad, "pixels": pixels.tolist()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_squares": None}  # a spawned worker maps the file itself
