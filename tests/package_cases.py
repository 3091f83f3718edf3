"""Model files, whole ones and damaged or hostile ones, and whether loading them ends as it must.

python -m tests.package_cases [2000]   loads that many and prints how they ended, and the memory it took.
"""

import copy
import json
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.classification.calibration import Calibration
from finetune.evaluation.classification.conformal import Conformal
from finetune.model_file import Model, load
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import own_file

IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)


def multilabel() -> Model:
    """All that a model file may hold, of a small network."""
    spec = NetworkSpec("resnet20_cifar", 2, 1, backbone_options={"drop_path": None}, head_options={"pool": "max"})
    classes, about = ["Mass", "Nodule"], {"split": "val", "n": 40, "patients": 30}
    curves = {"Mass": {"slope": 0.8, "offset": -0.5}}
    point = {"goal": "sensitivity", "value": 0.9, "split": "val", "thresholds": {"Mass": 0.3, "Nodule": 0.25}}
    return Model(
        spec.build(),
        spec,
        Preprocessing(8, 1, (0.5,), (0.25,)),
        ClassAnswers(
            classes,
            "multilabel",
            calibration=Calibration("platt", "multilabel", classes, curves, {"Mass": 0.2}, about),
            operating_points={"screen": point},
            selective={"Mass": {"threshold": 0.3, "point": "screen", "cuts": {"0.9": 0.1, "0.5": 0.7}}},
            conformal=Conformal("multilabel", classes, 0.1, {"Nodule": {"yes": 0.3, "no": 0.6}}, about),
        ),
        {"command": "python -m finetune", "versions": {"torch": "2.6"}, "weights": {"used": 3, "random": False}},
    )


def multiclass() -> Model:
    spec = NetworkSpec("densenet_40_12", 3, 3)
    classes, about = ["a", "b", "c"], {"split": "val", "n": 40, "patients": 30}
    curve = {"log_odds": [-1.0, 0.5, 2.0], "probability": [0.1, 0.4, 0.9]}
    return Model(
        spec.build(),
        spec,
        Preprocessing(8, fit="crop", crop_fraction=0.8),
        ClassAnswers(
            classes,
            "multiclass",
            calibration=Calibration(
                "isotonic", "multiclass", classes, dict.fromkeys(classes, curve), dict.fromkeys(classes, 0.3), about
            ),
            selective={"all classes": {"threshold": None, "point": None, "cuts": {"0.5": 0.7}}},
            conformal=Conformal("multiclass", classes, 0.1, {"": {"least": 0.3}}, about),
        ),
    )


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The file's own header and its body."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_text(data: bytes, text: str, *, hashed: bool = True) -> bytes:
    """The file with another description, whose hash is right (a hostile file) or is the old one (a damaged file)."""
    header, body = parts(data)
    metadata = own_file.metadata(text)
    header["__metadata__"] = metadata if hashed else {**header["__metadata__"], own_file.TEXT: text}
    return joined(header, body)


def text_of(data: bytes) -> str:
    return parts(data)[0]["__metadata__"][own_file.TEXT]


DEEP = "DEEP"  # stands for lists nested beyond what a parser follows
VALUES = [None, "", "x", "1", -1, 0, 1, 2, 3, 2.5, 1e9, 10**9, 10**30, -0.1, 1e308, float("nan"), float("inf"), True]
VALUES += [[], {}, [[]], ["x"], [1, 2, 3], {"x": 1}, "\x00", "é" * 1000, [1] * 10_000, ["x"] * 10_000, DEEP]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _changed_value(r: random.Random, values: Any) -> Any:
    """One value replaced, removed, renamed, added or doubled, anywhere."""
    values = copy.deepcopy(values)
    *above, last = r.choice([place for place in _places(values) if place] or [(None,)])
    holder = values
    for key in above:
        holder = holder[key]
    if last is None or r.random() < 0.01:
        return r.choice(VALUES)
    kind = r.choice(["value", "value", "value", "remove", "rename", "add", "double"])
    if kind == "remove":
        holder.pop(last)
    elif kind == "rename" and isinstance(holder, dict):
        holder[r.choice(["x", "", last.upper(), "num_classes", "__class__"])] = holder.pop(last)
    elif kind == "add" and isinstance(holder, dict):
        holder[r.choice(["x", "width", "_target_", "dropout", "num_classes"])] = r.choice(VALUES)
    elif kind == "double" and isinstance(holder, list):
        holder.append(holder[last])
    else:
        holder[last] = r.choice(VALUES)
    return values


def as_text(values: Any) -> str:
    return json.dumps(values).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)


def _changed_bytes(r: random.Random, data: bytes, near: int) -> bytes:
    """Cut short, a bit turned, bytes lost or added, mostly within the first `near`."""
    place = r.randrange(min(near, len(data))) if r.random() < 0.8 else r.randrange(len(data))
    kind = r.choice(["bit", "bit", "cut", "lost", "added", "byte"])
    if kind == "cut":
        return data[:place]
    if kind == "lost":
        return data[:place] + data[place + r.choice([1, 4, 100]) :]
    if kind == "added":
        return data[:place] + r.randbytes(r.choice([1, 8, 100])) + data[place:]
    changed = data[place] ^ (1 << r.randrange(8)) if kind == "bit" else r.randrange(256)
    return data[:place] + bytes([changed]) + data[place + 1 :]


def made(seed: int, whole: bytes) -> tuple[bytes, bool]:
    """A changed file, and whether the hash of its description was made to fit (the change may then load)."""
    r = random.Random(seed)
    kind = r.choice(["values", "values", "values", "text", "outer", "bytes", "bytes"])
    header, body = parts(whole)
    if kind == "values":
        values = json.loads(text_of(whole))
        for _ in range(r.choice([1, 1, 1, 2, 5])):
            values = _changed_value(r, values)
            if not isinstance(values, dict):
                break
        return with_text(whole, as_text(values), hashed=True), True
    if kind == "text":
        hashed = r.random() < 0.5
        text = _changed_bytes(r, text_of(whole).encode(), 2000).decode(errors="replace")
        return with_text(whole, text, hashed=hashed), hashed
    if kind == "outer":
        about = header.pop("__metadata__")
        header = _changed_value(r, header)
        if isinstance(header, dict) and r.random() < 0.8:
            header["__metadata__"] = about if r.random() < 0.7 else _changed_value(r, about)
        return joined(as_text(header).encode(), body), False
    if kind == "bytes" and r.random() < 0.1:
        return r.choice([2**63, 2**40, 10**8, 2, 0]).to_bytes(8, "little") + whole[8:], False
    return _changed_bytes(r, whole, r.choice([8, 100, 30_000])), False


def ending(data: bytes, hashed: bool, original: Model, path: Path) -> str:
    """How loading ends: `refused` by one line that names the file, `the same` model, or (with a right hash) `another`.

    Raises:
        AssertionError: another error, a long one, or a model that was changed without a word.
    """
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of format 1
            model = load(path)
    except FinetuneError as error:
        message = str(error)
        assert message.startswith(f"model={path}"), message
        assert "\n" not in message, message
        assert len(message) < 1000, message
        return "refused"
    except Exception as error:
        raise AssertionError("".join(traceback.format_exception(error))) from None
    if model.preprocessing.stored_size <= 64:
        table = model.predict([IMAGE])
        assert len(table) == 1
    skipped = ("network", "path")  # objects; the tensors have their own hash
    same = all(getattr(model, f.name) == getattr(original, f.name) for f in fields(model) if f.name not in skipped)
    assert same or hashed, "changed without a word"
    return "the same" if same else "another, with a right hash"


def main(count: int) -> None:
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        originals = [multilabel(), multiclass()]
        wholes = [model.save(Path(folder, f"{i}.safetensors")).read_bytes() for i, model in enumerate(originals)]
        for seed in range(count):
            data, hashed = made(seed, wholes[seed % 2])
            try:
                ends[ending(data, hashed, originals[seed % 2], Path(folder, "a.safetensors"))] += 1
            except AssertionError as error:
                ends["WRONG"] += 1
                print(f"seed {seed}: {error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{count} files: {dict(ends)}; {peak} MiB at most")
    if ends["WRONG"]:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
