"""The one-file model: weights, preprocessing, classes, calibration, provenance in a model.safetensors, without pickle.

The file holds plain values only and never names a class to build. They are checked before anything is built.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from finetune import inference, model_header, model_record, views
from finetune.errors import FinetuneError
from finetune.evaluation import novelty
from finetune.evaluation.answers import Answers, Writer, tileable
from finetune.evaluation.novelty import FeatureGaussian
from finetune.files import MODEL, SCORES, is_finished, resume_word
from finetune.heads.features import gives
from finetune.image_batches import check_images
from finetune.model_header import Header
from finetune.model_record import Record, Vectors, Verification
from finetune.network import Network, NetworkSpec
from finetune.prediction_stream import ListPredictor, Observer, Progress
from finetune.preprocessing import Preprocessing
from finetune.tiles import OVERLAP, Tiling
from finetune.weights import files, own_file, stored_names

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class Model:
    """A trained network with everything needed to run it on images."""

    network: Network
    spec: NetworkSpec
    preprocessing: Preprocessing
    answers: Answers
    """The meaning of the outputs, with the values fitted on val; the class belongs to the model's task."""
    provenance: dict[str, Any] = field(default_factory=dict)
    tta: tuple[str, ...] = ()
    """Views whose outputs are averaged in every prediction: see `finetune.views`."""
    path: Path | None = None
    record: Record = field(default_factory=Record)
    """Labels, data and test vectors, which `verify` checks."""
    _feature_gaussian: tuple[FeatureGaussian | None, str] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def task(self) -> str:
        """Name of the task that the network was trained for."""
        return self.answers.task

    @property
    def classes(self) -> list[str]:
        """Names of the network's outputs."""
        return list(self.answers.classes)

    @property
    def weights_hash(self) -> str:
        """sha256 over names and bytes of all tensors; the same in every format of the file."""
        return own_file.tensors_hash(self.network.state_dict())

    def __repr__(self) -> str:
        parts = [self.spec.backbone, f"{self.preprocessing.image_size} px", f"in_channels={self.spec.in_channels}"]
        parts += [f"tta={', '.join(self.tta)}"] if self.tta else []
        return f"Model({'; '.join([*parts, *self.answers.describe()])}{f'; {self.path}' if self.path else ''})"

    @property
    def feature_gaussian(self) -> tuple[FeatureGaussian | None, str]:
        """The distribution of its training images' features, from the file beside it; else None and the reason."""
        if self.path is None:
            return None, "the model has not been saved"
        if self._feature_gaussian is None:
            gaussian, reason = novelty.read(self.path.parent, self.weights_hash)
            if gaussian is not None and (n := len(gaussian.val_distances)) < novelty.MIN_VAL_IMAGES:
                reason = f"{novelty.FILE} is of {n} validation images, {novelty.MIN_VAL_IMAGES} are needed"
            self._feature_gaussian = (None if reason else gaussian), reason
        return self._feature_gaussian

    def predict(
        self,
        images: Sequence[Any],
        *,
        batch_size: int = 32,
        device: str = "auto",
        progress: Progress | None = None,
        tile: int | None = None,
        overlap: float = OVERLAP,
    ) -> "pd.DataFrame":
        """One row per image, in their order, of a classifier with the columns

        - `path`: of an array, its position
        - `prob_<class>`: sigmoid or softmax of the logits, never calibrated
        - `calibrated_<class>`: for classes with a calibration in the model
        - `set`, of a multilabel model `set_<class>`: conformal sets, if the model has them: all classes that
          cannot be ruled out, as `a|b` or `yes|no`; `neither` where all can
        - `decision`: the most probable class; of a multilabel model all whose probability reaches its threshold
          (`thresholds`), as `a|b`, or `none`
        - `novelty` and `unusual`, if the features of the training images are stored beside the model: the percentage of
          validation images that are more like the training images than this one; yes beyond the 99th percentile

        Args:
            images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3).
            batch_size: images or tiles at once; the results do not depend on it.
            progress: called with (done, total) after each batch.
            tile: images larger than this, in pixels as stored, are predicted in squares of this side, each resized to
                the network's, and their answers put together. For task=segment and task=detect.
            overlap: least fraction of its side that a tile shares with the next.

        Raises:
            FinetuneError: an image cannot be read; names it with the reason.
        """
        tiling = Tiling.of(tile, overlap)
        table = self.predict_all(images, batch_size=batch_size, device=device, progress=progress, tiling=tiling)
        bad = table[table["error"] != ""]
        if len(bad):
            first = "; ".join(f"{row.path}: {row.error}" for row in bad.head().itertuples())
            raise FinetuneError(f"{len(bad)} of {len(images)} images cannot be read: {first}.")
        return table.drop(columns="error")

    def predict_all(
        self,
        images: Sequence[Any],
        *,
        batch_size: int = 32,
        device: str = "auto",
        progress: Progress | None = None,
        writer: Writer | None = None,
        tiling: Tiling | None = None,
    ) -> "pd.DataFrame":
        """As `predict`, with a last column `error`: the reason why an image cannot be read; its other cells are blank.

        `writer` (`answers.writer`) takes the results that are no columns, such as masks, batch by batch.
        """
        images = check_images(images)
        lists = self.predict_stream(
            [images], batch_size=batch_size, device=device, tiling=tiling, writer=writer, progress=progress
        )
        (table,) = lists
        return table

    def predict_stream(
        self,
        lists: Iterable[Sequence[Any] | None],
        *,
        batch_size: int = 32,
        device: str = "auto",
        workers: int = 0,
        fast: bool = False,
        tiling: Tiling | None = None,
        writer: Writer | None = None,
        observe: Observer | None = None,
        progress: Progress | None = None,
    ) -> "Iterator[pd.DataFrame]":
        """The table of `predict_all` for each of several lists, so that a long one needs no memory for all of it.

        Args:
            lists: lists of paths, PIL images or uint8 arrays, in turn; a batch has images of one list only. A None
                among them says that the next one is not known yet (see `image_batches.list_batches`).
            workers: threads that read the next images while the network runs, also those of the next lists.
            fast: fold batch norms into convolutions: the same probabilities up to rounding, in less time.
            observe: is called with each batch, for heat maps.
        """
        if batch_size < 1:
            raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
        self.check_tiling(tiling)
        gaussian, _ = self.feature_gaussian
        predictor = ListPredictor(
            self.network,
            self.preprocessing,
            self.answers,
            gaussian,
            self.tta,
            batch_size=batch_size,
            device=device,
            tiling=tiling,
            workers=workers,
            fast=fast,
        )
        return predictor.tables(lists, writer=writer, observe=observe, progress=progress)

    def check_tiling(self, tiling: Tiling | None) -> None:
        """Raise a FinetuneError where images are to be cut into tiles, which the model's task or head does not have."""
        if tiling is not None:
            tileable(self.answers, tiling.tile).check_tiles(tiling.tile, self.network.head)

    def save(self, path: str | Path) -> Path:
        """Write the file, atomically, with test vectors computed on the CPU from what is stored."""
        path, spec = Path(path), self.spec
        tensors = {name: as_stored(value) for name, value in self.network.state_dict().items()}
        keys = stored_names.keys_for(spec.backbone, spec.head, spec.neck)
        vectors = Vectors.of_network(spec.filled(tensors), self.preprocessing)
        record = replace(self.record, keys=keys, vectors=vectors)
        header = Header(
            own_file.FORMAT,
            spec,
            self.preprocessing,
            own_file.tensors_hash(tensors),
            self.provenance,
            self.task,
            self.tta,
            record,
        )
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            stored = stored_names.to_file(tensors, keys, spec.backbone)
            save_file(stored, partial, metadata=own_file.metadata(header.to_text(self.answers)))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self.path, self.record = path, record
        return path

    def verify(self) -> Verification:
        """Compute the file's test vectors again, and compare the samples.csv beside it with that of the fit.

        `finetune.load` has compared all tensors and the text with their hashes before.

        Raises:
            FinetuneError: the outputs lie beyond the tolerance, the samples.csv is another, or the file has no test
                vectors.
        """
        with inference.eval_mode(self.network):
            return model_record.verify(self.record, self.network, self.preprocessing, self.path)


def as_stored(value: torch.Tensor) -> torch.Tensor:
    """As in a newly built network: on the CPU and, whatever the precision of the training, in 32 bits."""
    value = value.detach().cpu().contiguous()
    return value.float() if value.is_floating_point() else value


def find_model_file(path: str | Path) -> Path:
    """The model file of a run folder or at a path; an unfinished run is an error.

    Raises:
        FinetuneError: there is none, or the run folder has no scores.json.
    """
    path = Path(path)
    if path.is_dir():
        if not is_finished(path):
            why = "its results are being replaced" if (path / SCORES).is_file() else f"it has no {SCORES}"
            raise FinetuneError(
                f"model={path} is not a finished run: {why}. "
                f"Go on with it by `python -m finetune {resume_word(path)}`, or name another run."
            )
        path = path / MODEL
    if not path.is_file():
        raise FinetuneError(f"model={path} does not exist. Name a run folder (outputs/latest) or a model.safetensors.")
    return path


def load(path: str | Path) -> Model:
    """A finished run folder or a model.safetensors -> the model, on the CPU, in eval mode.

    Raises:
        FinetuneError: an unfinished run, or a file that is missing, damaged or not a finetune model.
    """
    path = find_model_file(path)
    with files.opened(path, "model") as file:
        header, answers = read_header(path, file.metadata() or {})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        try:
            header.check_tensors({name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()})
        except FinetuneError as error:
            raise FinetuneError(f"model={path} does not fit its own header: {error}") from None
        stored = {name: file.get_tensor(name) for name in slices}
    tensors = stored_names.to_network(stored, header.record.keys, header.network.backbone)
    if own_file.tensors_hash(tensors) != header.weights_hash:
        raise FinetuneError(f"model={path} is damaged: its tensors do not match the hash in its header.")
    network = header.network.filled(tensors)
    try:
        tta = views.check(header.tta, gives(network.head), "tta")
    except FinetuneError as error:
        raise FinetuneError(f"model={path} does not fit its own header: {error}") from None
    return Model(network, header.network, header.preprocessing, answers, header.provenance, tta, path, header.record)


def read_header(path: Path, metadata: Mapping[str, str]) -> tuple[Header, Answers]:
    """Header and answers of the model at `path`, with types and bounds checked.

    Raises:
        FinetuneError: something is wrong; names the path.
    """
    try:
        text = own_file.header_text(metadata)
        parsed = None if text is None else model_header.read(text)
    except FinetuneError as error:
        raise FinetuneError(f"model={path} {error}") from None
    if parsed is None:
        raise FinetuneError(
            f"model={path} holds tensors but no finetune header: it is not a model file of this project. "
            "To start from its weights, give it as backbone.weights."
        )
    header, _ = parsed
    if header.format < 2:
        warnings.warn(
            f"model={path} is of format {header.format}: no hash covers its preprocessing, classes and calibration. "
            "To write it again with a hash: finetune.load(PATH).save(PATH).",
            stacklevel=3,
        )
    return parsed
