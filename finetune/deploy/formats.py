"""A graph written to a file and read back: ONNX, an exported program of torch, or TorchScript."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.deploy.graph import Graph
from finetune.errors import FinetuneError, MissingExtra, one_of

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".pt"}
"""Format -> ending of its files."""
OPSET = 18
"""Of ONNX; onnxruntime 1.14 and later read it."""

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""uint8 images (N, H, W, 3) -> the outputs by name."""


def check_format(name: str) -> None:
    """Raise a FinetuneError where a format is unknown, or its packages are missing."""
    if name not in FORMATS:
        raise one_of("format", name, FORMATS)
    if name == "onnx" and (missing := [p for p in ("onnx", "onnxruntime") if find_spec(p) is None]):
        raise MissingExtra(f"format=onnx needs the packages {', '.join(missing)}", "onnx")


@contextmanager
def exporters_warnings_ignored() -> Iterator[None]:
    """Inside, warnings of the exporters about themselves are not shown: that they, or functions that they use, will be
    replaced, and what a tracer takes for a constant, which a comparison on images of other sizes checks here."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
            warnings.filterwarnings("ignore", category=category)
        warnings.filterwarnings("ignore", message="No complete tensor found", category=UserWarning)  # channels last
        warnings.filterwarnings("ignore", message=".*(onnx|export|dynamic_shapes|aten|opset).*", category=UserWarning)
        yield


def write(graph: Graph, path: Path, format: str) -> None:
    """Write the graph, atomically. The batch, and of a graph for any size height and width, may differ from call to
    call."""
    check_format(format)
    partial = path.with_name(f".{path.name}.{os.getpid()}{FORMATS[format]}")
    try:
        with exporters_warnings_ignored(), torch.no_grad():
            if format == "torchscript":
                traced = torch.jit.trace(graph, (graph.example(),), check_trace=False)
                torch.jit.save(torch.jit.freeze(traced), str(partial))
            elif format == "torch_export":
                torch.export.save(recorded(graph), partial)
            else:
                write_onnx(graph, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def recorded(graph: Graph) -> Any:
    """The graph as torch.export records it."""
    free = [0, 1, 2] if graph.input.size == "any" else [0]
    shape = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    return torch.export.export(graph, (graph.example(),), dynamic_shapes=(shape,))


def write_onnx(graph: Graph, path: Path) -> None:
    """An ONNX file with its weights in it.

    By torch's older exporter, which traces: it takes a second where the one of torch.export takes ten to thirty, and
    its graphs have the same operators. Which pass of the resizing comes first is an `If` in both.
    """
    free = ["images", "height", "width"] if graph.input.size == "any" else ["images"]
    torch.onnx.export(
        graph,
        (graph.example(),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=graph.outputs,
        dynamic_axes={
            "image": dict(enumerate(free)),
            **{name: {0: "images"} for name in graph.outputs if name != "placement"},
        },
    )


def read(path: Path, format: str, outputs: list[str], threads: int | None = None) -> Run:
    """The function in a file: uint8 images -> its outputs by name.

    Args:
        threads: of onnxruntime; by default as many as torch uses.

    Raises:
        FinetuneError: the file cannot be read.
    """
    check_format(format)
    try:
        if format == "onnx":
            return read_onnx(path, threads or torch.get_num_threads())
        with exporters_warnings_ignored():
            module: Any = torch.jit.load(str(path)) if format == "torchscript" else torch.export.load(path).module()
    except Exception as error:
        raise FinetuneError(f"{path} cannot be read back: {' '.join(str(error).split())[:300]}") from error

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            values = module(torch.from_numpy(images))
        return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}

    return run


def read_onnx(path: Path, threads: int) -> Run:
    """The function in an ONNX file, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else its threads slow down torch's
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"image": images}), strict=True))
