"""From lists of images to a table of answers for each: images are read while the network runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune import inference
from finetune.backbones.folding import fold_batch_norm
from finetune.evaluation.answers import Answers, TileCollector, Writer, tileable
from finetune.evaluation.novelty import FeatureGaussian
from finetune.image_batches import TileBatch, list_batches
from finetune.network import Network
from finetune.placement import Placement
from finetune.preprocessing import Preprocessing
from finetune.tiles import Tiling

if TYPE_CHECKING:
    import pandas as pd

Observer = Callable[[Sequence[str], dict[str, Any], Any], None]
"""Takes the names of N images, their batch, and the network's outputs for it."""
Progress = Callable[[int, int], None]
"""Takes the number of images done, and their total."""

BATCHES_AHEAD = 2  # complete batches that wait for the network


class ListPredictor:
    """Predicts lists of images with one network.

    Args:
        gaussian: of the features of the training images; None leaves novelty out.
        tta: views whose outputs are averaged.
        workers: threads that read images ahead; 0 reads each batch when the network is free.
        fast: whether batch norms are folded into convolutions: the outputs are the same up to rounding.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        answers: Answers,
        gaussian: FeatureGaussian | None,
        tta: Sequence[str],
        *,
        batch_size: int,
        device: str,
        tiling: Tiling | None = None,
        workers: int = 0,
        fast: bool = False,
    ):
        self.network = fold_batch_norm(network) if fast else network
        self.preprocessing, self.answers, self.gaussian = preprocessing, answers, gaussian
        self.forward = inference.with_distances(self.network, gaussian, tta)  # type: ignore[arg-type]
        self.batch_size, self.tiling, self.workers = batch_size, tiling, workers
        self.device = inference.best_device(device)

    def tables(
        self,
        lists: Iterable[Sequence[Any] | None],
        *,
        writer: Writer | None = None,
        observe: Observer | None = None,
        progress: Progress | None = None,
    ) -> Iterator[pd.DataFrame]:
        """A table for each list, see `Model.predict_all`; lists may be None, see `list_batches`."""
        parts: list[pd.DataFrame] = []
        done = 0
        for batch, outputs, distances in self._outputs(self._batches(lists)):
            names = names_of(batch["images"])
            if batch["image"] is None:
                yield self._table(names, parts, batch["bad"])
                parts, done = [], done + len(names)
                report(progress, done, done)
                continue
            of_batch = [names[row] for row in batch["row"]]
            if writer is not None:
                writer.add(of_batch, outputs, batch["placement"])
            if observe is not None:
                observe(of_batch, batch, outputs)
            parts.append(self._rows(batch["placement"], outputs, distances).set_axis(batch["row"], axis=0))
            report(progress, done + batch["row"][-1] + 1, done + len(names))

    def _batches(self, lists: Iterable[Sequence[Any] | None]) -> Iterable[dict[str, Any]]:
        crosses_as_bytes = self.device.type == "cuda"
        stopped = Event()
        batches = list_batches(
            until(stopped, lists),
            self.preprocessing,
            self.batch_size,
            tiling=self.tiling,
            needs_size=self.answers.needs_size,
            workers=self.workers,
            normalise=not crosses_as_bytes,
        )
        batches = made_ahead(batches, BATCHES_AHEAD, stopped) if self.workers else batches
        return BytesToDevice(batches, self.preprocessing) if crosses_as_bytes else batches

    def _outputs(self, batches: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any, np.ndarray | None]]:
        """Batches of images with their outputs and distances; the tiles of an image are put together before. Its
        distance is the median of theirs."""
        collector: TileCollector | None = None
        of_tiles: list[np.ndarray] = []
        for batch, result in inference.run(self.network, batches, self.device, self.forward):
            if result is None:
                yield batch, None, None
                continue
            outputs, distances = result
            about: TileBatch | None = batch["tiles"]
            if about is None:
                yield batch, outputs, distances
                continue
            if collector is None:
                answers = tileable(self.answers, about.grid.side)
                collector = answers.collect_tiles(about.grid, self.preprocessing.image_size, self.network.head)
            for tile, output in zip(about.tiles, outputs, strict=True):
                collector.add(tile, output)
            of_tiles += [] if distances is None else [distances]
            if about.is_last:
                yield batch, [collector.result()], np.median(np.concatenate(of_tiles))[None] if of_tiles else None
                collector, of_tiles = None, []

    def _rows(self, placements: Sequence[Placement], outputs: Any, distances: np.ndarray | None) -> pd.DataFrame:
        """The columns of a batch: those of the task, and novelty where it is known."""
        import pandas as pd

        columns = pd.DataFrame(self.answers.columns(outputs, placements))
        if self.gaussian is not None:
            distances = np.zeros(0) if distances is None else distances
            columns["novelty"] = self.gaussian.percentile(distances).astype(float)
            columns["unusual"] = np.where(self.gaussian.unusual(distances), "yes", "no")
        return columns

    def _table(self, names: list[str], parts: list[pd.DataFrame], bad: dict[int, str]) -> pd.DataFrame:
        """The rows of all images of a list, those of unreadable ones blank."""
        import pandas as pd

        nothing = np.zeros((0, len(self.answers.classes)), np.float32)
        predicted = pd.concat(parts) if parts else self._rows([], nothing, None)
        table = predicted.reindex(range(len(names)))
        table.insert(0, "path", pd.Series(names, dtype=str))
        return table.assign(error=pd.Series([bad.get(row, "") for row in range(len(names))], dtype=str))


class BytesToDevice:
    """Batches of uint8 images, which are normalised on the device: a quarter of the bytes cross to it."""

    def __init__(self, batches: Iterable[dict[str, Any]], preprocessing: Preprocessing):
        self.batches, self.preprocessing = batches, preprocessing

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def on_device(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The batches with their images on `device`, normalised."""
        for batch in self.batches:
            if batch["image"] is not None:
                image = batch["image"].to(device, non_blocking=True)
                batch = {**batch, "image": self.preprocessing.normalise(image) if image.dtype == torch.uint8 else image}
            yield batch


def until(stopped: Event, lists: Iterable[Sequence[Any] | None]) -> Iterator[Sequence[Any] | None]:
    """The lists, none more once `stopped` is set: a thread that waits for other processes ends then."""
    for images in lists:
        if stopped.is_set():
            return
        yield images


def made_ahead(batches: Iterator[dict[str, Any]], ahead: int, stopped: Event) -> Iterator[dict[str, Any]]:
    """The same batches in the same order, made in a thread of their own while earlier ones are in use. `stopped` is set
    where no more are taken."""
    pending: deque[Future[dict[str, Any] | None]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            pending.extend(thread.submit(next, batches, None) for _ in range(ahead))
            while (batch := pending.popleft().result()) is not None:
                pending.append(thread.submit(next, batches, None))
                yield batch
        finally:
            stopped.set()
            for future in pending:
                future.cancel()
            thread.submit(batches.close)  # type: ignore[attr-defined]  # after the one that is being made


def names_of(images: Sequence[Any]) -> list[str]:
    """Paths as text; of anything else its position."""
    return [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]


def report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
