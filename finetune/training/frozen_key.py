"""The name under which activations of frozen parts are found again: a hash of all that they depend on."""

import hashlib
import inspect
import json
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import torch

from finetune import __version__
from finetune.data.loading.module import ImageData
from finetune.training.frozen_ranges import FrozenRange
from finetune.training.module import FineTuning

FORMAT = 2
LIBRARIES = ("finetune", "torch", "torchvision", "timm", "albumentations")


def key_of(
    module: FineTuning,
    data: ImageData,
    split: str,
    held: FrozenRange,
    rows: np.ndarray,
    versions: int,
    batch_sizes: set[int],
    facts: Mapping[str, Any],
) -> str:
    """24 hexadecimal digits.

    Args:
        rows: of the table, in their order.
        versions: number of augmented versions of each.
        batch_sizes: those in which activations are computed.
        facts: settings of the network, the augmentation (`transforms`, `seed`) and the store.
    """
    augment = data.augment if split == "train" else None
    left_out = set() if held.start == "head" else {"head"}
    left_out |= {"transforms", "seed"} if augment is None else set()
    names = list(module.parts)
    below = [(part, m) for part in names[: names.index(held.start)] for m in module.parts[part]]
    code = {type(child) for m in (*(m for _, m in below), module.network.head) for child in m.modules()}
    code |= set() if augment is None else {type(transform) for transform in augment.transforms.values()}
    device = module.device
    libraries = [] if augment is None else [version(name) for name in ("albumentations", "opencv-python-headless")]
    described = {
        "format": FORMAT,
        "start": held.start,
        "preprocessing": repr(data.preprocessing),
        "batch_sizes": sorted(batch_sizes),
        "images": [data.images.digests[row] for row in rows],
        "augment": None if augment is None else [data.seed, versions, rows.tolist()],
        "device": device.type + (torch.cuda.get_device_name(device) if device.type == "cuda" else ""),
        "threads": torch.get_num_threads(),
        "dtype": str(next(module.network.parameters()).dtype),
        "versions": [__version__, torch.__version__, PIL.__version__, *libraries],
        "code": sorted(found for kind in code if (found := source_hash(kind)) is not None),
        **{name: value for name, value in facts.items() if name not in left_out},
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for part, child in below:
        for name, tensor in child.state_dict().items():
            digest.update(f"{part} {name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


def source_hash(kind: type) -> str | None:
    """A hash of the code of a class that belongs to the user; None for one of this program or of a library."""
    if kind.__module__.partition(".")[0] in LIBRARIES:
        return None
    try:
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):
        source = secrets.token_hex()  # written nowhere: never found again
    return hashlib.sha256(source.encode()).hexdigest()
