"""The files of the image cache: one .npy of equal squares beside its facts, complete or absent."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from finetune.data.decoding import containers
from finetune.errors import FinetuneError

try:
    import fcntl
except ImportError:  # Windows: two runs at once may decode twice, the rename still decides
    fcntl = None  # type: ignore[assignment]

COPY_ROWS = 256

Printer = Callable[[str], Any]
"""Takes a sentence for the user."""


class DiskFull(Exception):
    """The disk has no space for the images; the message says how much is free."""


class StoreFolder:
    """base/key: `pictures.npy` and `facts.json`. It appears by one rename, so a killed run leaves no partial folder."""

    def __init__(self, base: Path, key: str):
        self.base, self.key = base, key
        self.path = base / key
        self.npy = self.path / "pictures.npy"
        self._is_locked = False

    def facts(self) -> dict[str, Any] | None:
        """What is known of the images; None when they are absent or damaged."""
        try:
            facts = json.loads((self.path / "facts.json").read_text(encoding="utf-8"))
            return facts if list(np.load(self.npy, mmap_mode="r").shape) == facts["shape"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def locked(self, on_wait: Callable[[], Any]) -> Iterator[None]:
        """Exclusive access among processes; the lock ends with its process."""
        with locked(self.base, self.key, on_wait) as self._is_locked:
            try:
                yield
            finally:
                self._is_locked = False

    @contextmanager
    def begin(self, rows: int, size: int, share: float) -> Iterator[ImageStore]:
        """A store beside the folder: `finish()` moves it there, otherwise it is removed."""
        if self._is_locked:  # no other process writes here: leftovers are from a killed run
            for left in (*self.base.glob(f"{self.key}.part-*"), self.path):
                shutil.rmtree(left, ignore_errors=True)
        part = self.base / f"{self.key}.part-{os.getpid()}-{secrets.token_hex(3)}"
        part.mkdir()
        try:
            yield ImageStore(part, self.path, rows, size, share)
        finally:
            shutil.rmtree(part, ignore_errors=True)


class ImageStore:
    """Squares of one size, gray until the first coloured image arrives; then what is stored is copied to RGB."""

    def __init__(self, part: Path, path: Path, rows: int, size: int, share: float):
        self.part, self.path, self.rows, self.size, self.share = part, path, rows, size, share
        self.full = ""
        """Why writing stopped; empty while it continues."""
        self._images: np.memmap | None = None
        self._end = 0  # rows beyond it are untouched

    def put(self, row: int, image: np.ndarray) -> None:
        """Store a square (S, S) or (S, S, 3); sets `full` and stores nothing where the disk is too full."""
        try:
            if self._images is None:
                self._images = self._new(image.shape[2:])
            elif image.ndim == 3 and self._images.ndim == 3:
                coloured = self._new((3,))
                for start in range(0, self._end, COPY_ROWS):
                    stop = min(start + COPY_ROWS, self._end)
                    coloured[start:stop] = self._images[start:stop, ..., None]
                self._images = coloured
                (self.part / "1.npy").unlink()
        except DiskFull as error:
            self.full, self._images = str(error), None
            return
        self._images[row] = image if image.ndim == self._images.ndim - 1 else image[..., None]
        self._end = max(self._end, row + 1)

    def finish(self, facts: dict[str, Any]) -> None:
        """Make the store complete under its own name; another process may have been faster, which is as good."""
        if self._images is None:  # not one readable image
            self._images = self._new(())
        shape = list(self._images.shape)
        self._images.flush()
        self._images = None
        (self.part / f"{shape[3] if len(shape) == 4 else 1}.npy").rename(self.part / "pictures.npy")
        (self.part / "facts.json").write_text(json.dumps({**facts, "shape": shape}), encoding="utf-8")
        try:
            self.part.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not self.path.is_dir():
                raise

    def _new(self, channels: tuple[int, ...]) -> np.memmap:
        shape = (self.rows, self.size, self.size, *channels)
        need, free = int(np.prod(shape)), shutil.disk_usage(self.part).free
        if need > self.share * free:
            limit = "half of " if self.share == 0.5 else ""
            raise DiskFull(
                f"the images need {file_size(need)}, more than {limit}the {file_size(free)} free in {self.path.parent}."
            )
        file = self.part / f"{channels[0] if channels else 1}.npy"
        images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        try:
            reserve(file)
        except OSError:
            raise DiskFull(f"the disk of {self.path.parent} is full.") from None
        return images


def reserve(file: Path) -> None:
    """Take the space of a file that is mapped: a disk that fills up meanwhile would kill the process (SIGBUS).

    Raises:
        OSError: there is no such space.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise


def fill_once(
    directory: str | Path,
    key: Callable[[], str],
    shape: tuple[int, int],
    read_all: Callable[..., dict[str, Any]],
    say: Printer,
    *,
    what: str,
    grows: str = "",
) -> tuple[dict[str, Any], Path | None]:
    """The facts and the file of `shape` (rows, side) squares: from an earlier run, or from `read_all(store,
    stop_when_full)`, which puts every row into the store and gives the facts.

    `directory` is "off", "auto" or a folder, as in ImageCache.build; without a file there is None in its place.
    `what` (Images) names the squares in sentences, `grows` says what more they may take.

    Raises:
        FinetuneError: a named folder without room, or that cannot be written to.
    """
    if str(directory) == "off":
        return read_all(None), None
    auto = str(directory) == "auto"
    base = default_directory() if auto else Path(directory).expanduser()
    rows, side = shape
    try:
        folder = StoreFolder(base, key())
        if (facts := folder.facts()) is not None:
            return facts, folder.npy
        with folder.locked(lambda: say(f"Waiting for another process that writes {folder.path}.")):
            if (facts := folder.facts()) is not None:
                return facts, folder.npy
            need = file_size(rows * side * side) + f" in {base}"
            say(f"Decoding {rows:,} {what.lower()} once: {need}{', ' * bool(grows)}{grows}.")
            with folder.begin(rows, side, share=0.5 if auto else 1.0) as store:
                facts = read_all(store, stop_when_full=not auto)
                if store.full:
                    say(f"{what} are not cached: {store.full} They are decoded each time (data.cache=DIR).")
                    return facts, None
                store.finish(facts)
            return facts, folder.npy
    except DiskFull as error:
        raise FinetuneError(f"data.cache={directory}: {error} Choose another folder or data.cache=off.") from None
    except OSError as error:  # a folder that cannot be written to
        if not auto:
            raise FinetuneError(f"data.cache={directory}: {error}. Choose another folder or off.") from None
        say(f"{what} are not cached ({error}); they are decoded each time (data.cache=DIR).")
        return read_all(None), None


def default_directory() -> Path:
    """$FINETUNE_CACHE, or ~/.cache/finetune."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune")


def file_state(file: Path) -> str:
    """Part of a key: place, size and times of a file."""
    return f"\x1e{os.path.abspath(file)}\x1f{containers.state(file)}"


@contextmanager
def locked(base: Path, key: str, on_wait: Callable[[], Any]) -> Iterator[bool]:
    """Exclusive access to base/key among processes, at most as long as the process lives. False where the file system
    has no locks."""
    base.mkdir(parents=True, exist_ok=True)
    with (base / f"{key}.lock").open("a") as file:
        yield _lock(file, on_wait)


def _lock(file: IO[str], on_wait: Callable[[], Any]) -> bool:
    """Whether the lock is ours; False where the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        on_wait()
    except OSError:
        return False
    fcntl.flock(file, fcntl.LOCK_EX)
    return True


def file_size(count: int) -> str:
    """Bytes as text."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
