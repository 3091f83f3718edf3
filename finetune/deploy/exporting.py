"""finetune.export: a model as one file for other programs, compared with the model before it is put in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import model_file
from finetune.deploy import formats, quantisation
from finetune.deploy.graph import Graph, graph_of
from finetune.deploy.manifest import manifest
from finetune.deploy.parity import TOLERANCE, compare, noise, pixels_of
from finetune.errors import FinetuneError, one_of
from finetune.files import write_json_atomic, write_text_atomic
from finetune.model_file import Model

PRECISIONS = ("fp32", "int8")
RUNNER = "run_onnx.py"
"""Name of the program beside an ONNX file."""


def export(
    model: Model | str | Path,
    path: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    size: str = "any",
    images: Sequence[Any] | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Write a model as one graph, from uint8 images to probabilities, and FILE.json beside it, which is returned.

    In the graph are resizing (unless size="square"), normalisation, the network with its batch norms folded,
    test-time augmentation, probabilities and calibration. Of task=segment also the label map; of task=detect
    (head=retinanet) candidates before non-maximum suppression. Beside an ONNX file `run_onnx.py` is written, which runs
    it with onnxruntime, numpy and Pillow alone.

    Args:
        model: a model, a run folder or a model.safetensors.
        path: the file to write; by its format .onnx, .pt2 (torch_export) or .pt (torchscript).
        format: onnx, torch_export or torchscript.
        precision: fp32, or int8: 8-bit convolutions, for format=onnx and task=classify.
        size: any: images of any size; square: of the network's, placed by the caller.
        images: paths, Pillow images or uint8 arrays, on which the file is compared with the model and, for int8, from
            which the ranges of the activations are taken. By default noise from a fixed seed.
        source: what they are, in words, for the manifest.

    Raises:
        FinetuneError: the logits in 32 bits differ from the model's by more than 1e-4, and nothing is written; an
            unknown format, precision or size; a head without a graph; int8 where it is not supported.
    """
    model = model if isinstance(model, Model) else model_file.load(model)
    path = Path(path)
    check(model, path, format, precision, images)
    graph = graph_of(model, size)
    source = source or ("coloured noise, seed 0" if images is None else "given images")
    images = noise(model) if images is None else images
    partial = path.with_name(f".{path.name}.{os.getpid()}.fp32{formats.FORMATS[format]}")
    eighth = path.with_name(f".{path.name}.{os.getpid()}.int8{formats.FORMATS[format]}")
    try:
        formats.write(graph, partial, format)
        parity = {"fp32": compare(model, formats.read(partial, format, graph.outputs), graph, images, source)}
        if not parity["fp32"].largest <= TOLERANCE:
            raise FinetuneError(
                f"format={format}: {parity['fp32'].sentence()}, more than {TOLERANCE:g}. Nothing was written."
            )
        more = {}
        if precision == "int8":
            quantisation.quantise(partial, eighth, (pixels_of(model, image, size) for image in images))
            parity["int8"] = compare(model, formats.read(eighth, format, graph.outputs), graph, images, source)
            more["quantisation"] = {
                "calibrated_on": source,
                "images": len(images),
                "weights": "signed, 7 bits, per output channel",
                "activations": "unsigned, 8 bits, per tensor, minimum and maximum",
            }
        manifest_path(path).unlink(missing_ok=True)  # that of an older export
        os.replace(eighth if precision == "int8" else partial, path)
    finally:
        partial.unlink(missing_ok=True)
        eighth.unlink(missing_ok=True)
    about = manifest(model, graph, path, format, precision, parity, **more)
    write_beside(path, about, graph)
    return about


def write_beside(path: Path, about: dict[str, Any], graph: Graph) -> None:
    """FILE.json and, of an ONNX file, the program that runs it."""
    write_json_atomic(manifest_path(path), about)
    if about["format"] == "onnx":
        runner = Path(__file__).with_name("runners") / f"{about['task']}.py"
        write_text_atomic(path.with_name(RUNNER), runner.read_text(encoding="utf-8"))


def manifest_path(path: Path) -> Path:
    """FILE.json."""
    return path.with_name(f"{path.name}.json")


def check(model: Model, path: Path, format: str, precision: str, images: Sequence[Any] | None) -> None:
    """Raise a FinetuneError where arguments are unknown or do not go together, before anything is computed."""
    formats.check_format(format)
    if precision not in PRECISIONS:
        raise one_of("precision", precision, PRECISIONS)
    suffix = formats.FORMATS[format]
    if path.suffix != suffix or path.is_dir() or not path.parent.is_dir():
        raise FinetuneError(
            f"path={path} cannot be written: it must end in {suffix} (format={format}) and {path.parent} be a folder."
        )
    if precision == "int8":
        if format != "onnx":
            raise FinetuneError(f"precision=int8 does not go with format={format}. Use format=onnx, or precision=fp32.")
        if model.task != "classify":
            raise FinetuneError(
                f"precision=int8 is not supported for task={model.task}: what 8 bits cost is measured by AUROC, which "
                "only task=classify has. Use precision=fp32."
            )
        if not images:
            raise FinetuneError(
                "precision=int8 needs images, from which the ranges of the activations are taken: input=DIR."
            )
