"""The one-file model: weights, preprocessing, classes, calibration, provenance in a model.safetensors, without pickle.

The file holds plain values only and never names a class to build.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune import inference
from finetune.data.images import as_picture, read_picture
from finetune.errors import BadImage, FinetuneError
from finetune.evaluation.calibration import Calibration
from finetune.evaluation.conformal import Conformal
from finetune.evaluation.files import is_finished
from finetune.network import Network, NetworkSpec
from finetune.preprocessing import Preprocessing

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of the layout; a file from a later program is refused, not guessed at."""


@dataclass
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

    @property
    def weights_hash(self) -> str:
        """sha256 over names and bytes of all tensors."""
        return weights_hash(self.network)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, K) -> sigmoid or softmax in float64."""
        z = torch.from_numpy(np.asarray(logits, dtype=np.float64))
        return (z.sigmoid() if self.kind == "multilabel" else z.softmax(dim=1)).numpy()

    def predict(self, images: Sequence[Any], *, batch_size: int = 32, device: str = "auto") -> "pd.DataFrame":
        """One row per image: `path` (its position for pictures given as arrays) and `prob_<class>` per class; then
        `calibrated_<class>`, where the model ships a calibration of the class, and the conformal sets, where it ships
        those: `set` (a|b), or `set_<class>` with yes and no.

        Args:
            images: paths, PIL images, or uint8 arrays (H, W) or (H, W, 3).
            batch_size: how many at once; the answers do not depend on it.

        Raises:
            FinetuneError: an image that cannot be read, named with the reason.
        """
        table, bad = self.predict_readable(images, batch_size=batch_size, device=device)
        if bad:
            first = "; ".join(f"{name}: {reason}" for name, reason in list(bad.items())[:5])
            raise FinetuneError(f"{len(bad)} of {len(images)} images cannot be read: {first}.")
        return table

    def predict_readable(
        self, images: Sequence[Any], *, batch_size: int = 32, device: str = "auto"
    ) -> tuple["pd.DataFrame", dict[str, str]]:
        """As `predict`, but going on without the unreadable ones: the table, and name -> reason for these."""
        import pandas as pd

        if isinstance(images, str | Path | np.ndarray):
            raise FinetuneError("predict takes a list of images: put a single one into brackets.")
        if batch_size < 1:
            raise FinetuneError(f"batch_size={batch_size} must be 1 or more.")
        names = [str(image) if isinstance(image, str | Path) else str(i) for i, image in enumerate(images)]
        bad: dict[str, str] = {}
        _, logits = inference.predict(
            self.network, self._batches(images, names, batch_size, bad), inference.best_device(device)
        )
        readable = [name for name in names if name not in bad]
        logits = logits.reshape(len(readable), len(self.classes))
        probs = self.probabilities(logits)
        columns: dict[str, Any] = {f"prob_{name}": probs[:, k] for k, name in enumerate(self.classes)}
        if self.calibration is not None:
            calibrated = self.calibration.probabilities(logits)
            columns |= {f"calibrated_{c}": calibrated[:, self.classes.index(c)] for c in self.calibration.calibrated}
        if self.conformal is not None:
            columns |= self.conformal.columns(probs)
        return pd.DataFrame({"path": pd.Series(readable, dtype=str), **columns}), bad

    def _batches(self, images: Sequence[Any], names: list[str], size: int, bad: dict[str, str]):
        pending: list[torch.Tensor] = []
        for name, image in zip(names, images, strict=True):
            try:
                path = isinstance(image, str | Path)
                picture = read_picture(image, self.preprocessing.enough) if path else as_picture(image)
            except BadImage as error:
                bad[name] = error.reason
                continue
            pending.append(self.preprocessing(picture))
            if len(pending) == size:
                yield {"image": torch.stack(pending), "index": np.zeros(size, dtype=np.int64)}
                pending = []
        if pending:
            yield {"image": torch.stack(pending), "index": np.zeros(len(pending), dtype=np.int64)}

    def save(self, path: str | Path) -> Path:
        """Write the one file, atomically."""
        path = Path(path)
        header = {
            "format": FORMAT,
            "network": self.spec.to_dict(),
            "classes": self.classes,
            "kind": self.kind,
            "preprocessing": self.preprocessing.to_dict(),
            "weights_hash": self.weights_hash,
            "provenance": self.provenance,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "operating_points": self.operating_points,
            "selective": self.selective,
            "conformal": self.conformal.to_dict() if self.conformal else None,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, partial, metadata={"finetune": json.dumps(header)})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self.path = path
        return path


def weights_hash(network: torch.nn.Module) -> str:
    """sha256 over names and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find(path: str | Path) -> Path:
    """The model file behind a run folder or a path, refusing a run that has not finished.

    Raises:
        FinetuneError: nothing there, or a run folder without scores.json.
    """
    path = Path(path)
    if path.is_dir():
        if not is_finished(path):
            why = "its results are being replaced" if (path / "scores.json").is_file() else "it has no scores.json"
            raise FinetuneError(
                f"model={path} is not a finished run: {why}. "
                f"Go on with it by `python -m finetune resume={path}`, or name another run."
            )
        path = path / "model.safetensors"
    if not path.is_file():
        raise FinetuneError(f"model={path} does not exist. Name a run folder (outputs/latest) or a model.safetensors.")
    return path


def load(path: str | Path) -> Model:
    """A finished run folder or a model.safetensors -> the model, on the CPU, in eval mode.

    Raises:
        FinetuneError: an unfinished run, a missing or damaged file, one that is not a finetune model.
    """
    path = find(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("finetune")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FinetuneError(f"model={path} cannot be read as safetensors: {error}.") from error
    if metadata is None:
        raise FinetuneError(
            f"model={path} holds tensors but no finetune header: it is not a model file of this project. "
            "To start from its weights, give it as backbone.weights."
        )
    header = json.loads(metadata)
    if header["format"] > FORMAT:
        raise FinetuneError(
            f"model={path} has format {header['format']}, this program reads up to {FORMAT}. Install a newer finetune."
        )
    spec = NetworkSpec.from_dict(header["network"])
    network = spec.build()
    wanted, held = set(network.state_dict()), set(tensors)
    if wanted != held:
        raise FinetuneError(
            f"model={path} does not fit its own header: missing {sorted(wanted - held)[:3]}, "
            f"unknown {sorted(held - wanted)[:3]}."
        )
    network.load_state_dict(tensors, strict=True)
    if weights_hash(network) != header["weights_hash"]:
        raise FinetuneError(f"model={path} is damaged: its tensors do not match the hash in its header.")
    return Model(
        network=network.to(memory_format=torch.channels_last).eval(),
        spec=spec,
        classes=list(header["classes"]),
        kind=header["kind"],
        preprocessing=Preprocessing.from_dict(header["preprocessing"]),
        provenance=header["provenance"],
        path=path,
        calibration=Calibration.from_dict(found) if (found := header.get("calibration")) else None,
        operating_points=header.get("operating_points") or {},
        selective=header.get("selective") or {},
        conformal=Conformal.from_dict(found) if (found := header.get("conformal")) else None,
    )
