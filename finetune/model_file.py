"""The one-file model: weights, preprocessing, classes, calibration, provenance in a model.safetensors, without pickle.

The file holds plain values only and never names a class to build. What it holds is checked before anything is built.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune import inference
from finetune.data.decoding.images import as_image, read_image
from finetune.errors import BadImage, FinetuneError
from finetune.evaluation.classification import novelty
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.evaluation.classification.novelty import FeatureGaussian
from finetune.evaluation.classification.thresholds import decision_thresholds
from finetune.files import MODEL, SCORES, is_finished, resume_word
from finetune.model_header import Header
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import files, own_file

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""Takes how many images are done, and how many there are."""


@dataclass(repr=False)
class Model:
    """A trained network with all it takes to ask it about a picture."""

    network: Network
    spec: NetworkSpec
    classes: list[str]
    kind: str  # "multilabel": one sigmoid per class; "multiclass": one softmax over the classes
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    calibration: Calibration | None = None  # fitted on val; `predict` then adds `calibrated_<class>`
    operating_points: dict[str, Any] = field(default_factory=dict)  # thresholds of `prob_<class>`, chosen on val
    selective: dict[str, Any] = field(default_factory=dict)  # how sure is sure enough, chosen on val
    conformal: Conformal | None = None  # fitted on val; `predict` then adds the sets
    _feature_gaussian: tuple[FeatureGaussian | None, str] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def weights_hash(self) -> str:
        """sha256 over names and bytes of all tensors."""
        return own_file.tensors_hash(self.network.state_dict())

    def __repr__(self) -> str:
        classes = ", ".join(self.classes[:20]) + (f", ... ({len(self.classes)})" if len(self.classes) > 20 else "")
        parts = [self.spec.backbone, f"{self.preprocessing.image_size} px", f"in_channels={self.spec.in_channels}"]
        parts += [f"{self.kind}: {classes}"]
        for name in ("calibration", "operating_points", "selective", "conformal"):
            parts += [name] if getattr(self, name) else []
        return f"Model({'; '.join(parts)}{f'; {self.path}' if self.path else ''})"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, K) -> sigmoid or softmax in float64."""
        z = torch.from_numpy(np.asarray(logits, dtype=np.float64))
        return (z.sigmoid() if self.kind == "multilabel" else z.softmax(dim=1)).numpy()

    @property
    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Of a multilabel model {class: {threshold, point}}: from which `prob_<class>` its `decision` names the class;
        `point` is the operating point whose threshold it is, None for 0.5. Empty for a multiclass model, whose decision
        is the most probable class."""
        return decision_thresholds(self.operating_points, self.classes) if self.kind == "multilabel" else {}

    @property
    def feature_gaussian(self) -> tuple[FeatureGaussian | None, str]:
        """What is typical of the model's own images, from the file beside it; else None and the reason."""
        if self.path is None:
            return None, "the model has not been saved"
        if self._feature_gaussian is None:
            known, reason = novelty.read(self.path.parent, self.weights_hash)
            if known is not None and (n := len(known.val_distances)) < novelty.MIN_VAL_IMAGES:
                reason = f"{novelty.FILE} is of {n} validation images, {novelty.MIN_VAL_IMAGES} are needed"
            self._feature_gaussian = (None if reason else known), reason
        return self._feature_gaussian

    def predict(
        self, images: Sequence[Any], *, batch_size: int = 32, device: str = "auto", progress: Progress | None = None
    ) -> "pd.DataFrame":
        """One row per image, in their order, with the columns

        - `path`: of an image given as an array its position
        - `prob_<class>`: sigmoid or softmax of the logits, never calibrated
        - `calibrated_<class>`: for the classes that the model ships a calibration of
        - `set`, of a multilabel model `set_<class>`: where it ships conformal sets, all that cannot be ruled out, as
          `a|b` or `yes|no`; `neither` where all are less probable than they were in the validation images that had them
        - `decision`: the most probable class; of a multilabel model all whose probability reaches its threshold
          (`thresholds`), as `a|b`, or `none`
        - `novelty` and `unusual`, where a fit left what is typical of its images beside the model: which percentage of
          its validation images is more like its training images than this one; yes beyond the 99th percentile

        Args:
            images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3).
            batch_size: how many at once; the answers do not depend on it.
            progress: called with (done, total) after each batch.

        Raises:
            FinetuneError: an image that cannot be read, named with the reason.
        """
        table = self.predict_all(images, batch_size=batch_size, device=device, progress=progress)
        bad = table[table["error"] != ""]
        if len(bad):
            first = "; ".join(f"{row.path}: {row.error}" for row in bad.head().itertuples())
            raise FinetuneError(f"{len(bad)} of {len(images)} images cannot be read: {first}.")
        return table.drop(columns="error")

    def predict_all(
        self, images: Sequence[Any], *, batch_size: int = 32, device: str = "auto", progress: Progress | None = None
    ) -> "pd.DataFrame":
        """As `predict`, with a last column `error`: why an image cannot be read, whose other cells are then blank."""
        import pandas as pd

        images = as_list(images)
        if batch_size < 1:
            raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
        names = [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]
        gaussian, _ = self.feature_gaussian
        bad: dict[int, str] = {}
        _, answers = inference.predict(
            self.network,
            self._batches(images, batch_size, bad, progress or (lambda done, total: None)),
            inference.best_device(device),
            inference.with_distances(self.network, gaussian),
        )
        readable = [row for row in range(len(names)) if row not in bad]
        answers = answers.reshape(len(readable), len(self.classes) + (gaussian is not None))
        logits = answers[:, : len(self.classes)]
        columns = pd.DataFrame(self._columns(logits), index=readable)
        if gaussian is not None:
            columns["novelty"] = gaussian.percentile(answers[:, -1]).astype(float)
            columns["unusual"] = np.where(gaussian.unusual(answers[:, -1]), "yes", "no")
        table = columns.reindex(range(len(names)))
        table.insert(0, "path", pd.Series(names, dtype=str))
        return table.assign(error=pd.Series([bad.get(row, "") for row in range(len(names))], dtype=str))

    def _columns(self, logits: np.ndarray) -> dict[str, Any]:
        """prob_, calibrated_, the sets and the decision, of logits (N, K)."""
        probs = self.probabilities(logits)
        columns: dict[str, Any] = {f"prob_{name}": probs[:, k] for k, name in enumerate(self.classes)}
        if self.calibration is not None:
            calibrated = self.calibration.probabilities(logits)
            columns |= {f"calibrated_{c}": calibrated[:, self.classes.index(c)] for c in self.calibration.calibrated}
        if self.conformal is not None:
            columns |= self.conformal.columns(probs)
        names = np.array(self.classes, object)
        if self.kind == "multiclass":
            return {**columns, "decision": names[logits.argmax(axis=1)]}
        above = probs >= np.array([about["threshold"] for about in self.thresholds.values()])
        return {**columns, "decision": ["|".join(names[row]) or "none" for row in above]}

    def _batches(self, images: Sequence[Any], size: int, bad: dict[int, str], progress: Progress):
        pending: list[torch.Tensor] = []
        for row, image in enumerate(images):
            try:
                path = isinstance(image, str | Path)
                pixels = read_image(image, self.preprocessing.min_decode_side) if path else as_image(image)
            except BadImage as error:
                bad[row] = error.reason
                continue
            pending.append(self.preprocessing(pixels))
            if len(pending) == size:
                yield {"image": torch.stack(pending), "index": np.zeros(size, dtype=np.int64)}
                pending = []
                progress(row + 1, len(images))
        if pending:
            yield {"image": torch.stack(pending), "index": np.zeros(len(pending), dtype=np.int64)}
        progress(len(images), len(images))

    def save(self, path: str | Path) -> Path:
        """Write the one file, atomically."""
        path = Path(path)
        tensors = {name: as_stored(value) for name, value in self.network.state_dict().items()}
        header = Header(
            own_file.FORMAT,
            self.spec,
            self.classes,
            self.kind,  # type: ignore[arg-type]
            self.preprocessing,
            own_file.tensors_hash(tensors),
            self.provenance,
            self.calibration,
            self.operating_points,
            self.selective,
            self.conformal,
        )
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, partial, metadata=own_file.metadata(header.to_text()))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self.path = path
        return path


def as_stored(value: torch.Tensor) -> torch.Tensor:
    """As a network that is built anew has it: on the CPU and, whatever the training computed in, in 32 bits."""
    value = value.detach().cpu().contiguous()
    return value.float() if value.is_floating_point() else value


def as_list(images: Any) -> list[Any]:
    """The images to ask about.

    Raises:
        FinetuneError: a single image, or tensors.
    """
    if isinstance(images, str | Path | np.ndarray | Image.Image):
        single = repr(str(images)) if isinstance(images, str | Path) else "image"
        raise FinetuneError(f"predict takes a list of images: put a single one into brackets, predict([{single}]).")
    images = [images] if isinstance(images, torch.Tensor) else list(images)
    if tensors := [image for image in images if isinstance(image, torch.Tensor)]:
        raise FinetuneError(
            f"predict takes paths, PIL images or uint8 arrays (H, W) or (H, W, 3), no tensors "
            f"({tensors[0].dtype} {tuple(tensors[0].shape)}): it does the preprocessing itself. For a batch that is "
            "prepared already, (N, C, H, W), the logits are model.network(batch)."
        )
    return images


def find(path: str | Path) -> Path:
    """The model file behind a run folder or a path, refusing a run that has not finished.

    Raises:
        FinetuneError: nothing there, or a run folder without scores.json.
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
        FinetuneError: an unfinished run, a missing or damaged file, one that is not a finetune model.
    """
    path = find(path)
    with files.opened(path, "model") as file:
        header = read_header(path, file.metadata() or {})
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        try:
            header.check_tensors({name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()})
        except FinetuneError as error:
            raise FinetuneError(f"model={path} does not fit its own header: {error}") from None
        tensors = {name: file.get_tensor(name) for name in slices}
    if own_file.tensors_hash(tensors) != header.weights_hash:
        raise FinetuneError(f"model={path} is damaged: its tensors do not match the hash in its header.")
    network = header.network.build()
    network.load_state_dict(tensors, strict=True)
    return Model(
        network=network.to(memory_format=torch.channels_last).eval(),
        spec=header.network,
        classes=header.classes,
        kind=header.kind,
        preprocessing=header.preprocessing,
        provenance=header.provenance,
        path=path,
        calibration=header.calibration,
        operating_points=dict(header.operating_points),
        selective=dict(header.selective),
        conformal=header.conformal,
    )


def read_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """What the model at `path` says of itself, typed and within its bounds.

    Raises:
        FinetuneError: the path and what is wrong.
    """
    try:
        text = own_file.header_text(metadata)
        header = None if text is None else own_file.read(Header, text)
    except FinetuneError as error:
        raise FinetuneError(f"model={path} {error}") from None
    if header is None:
        raise FinetuneError(
            f"model={path} holds tensors but no finetune header: it is not a model file of this project. "
            "To start from its weights, give it as backbone.weights."
        )
    if header.format < 2:
        warnings.warn(
            f"model={path} is of format {header.format}: no hash covers its preprocessing, classes and calibration. "
            "To write it anew with one: finetune.load(PATH).save(PATH).",
            stacklevel=3,
        )
    return header
