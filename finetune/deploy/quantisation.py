"""Static quantisation of an ONNX file to 8 bits: convolutions, products of matrices and what lies between them.

Weights are signed, one scale per output channel; activations are unsigned, one scale per tensor, whose range is that of
the calibration images. Weights take 7 bits: processors without VNNI add two products of 8 bits in 16, which overflow
with all 8 bits (onnxruntime's `reduce_range`). Resizing, normalisation and probabilities stay as they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Operators of ONNX that compute in 8 bits; between two of them nothing is converted back."""


def quantise(source: Path, path: Path, images: Iterable[np.ndarray]) -> None:
    """Write the file `source` in 8 bits to `path`, atomically.

    Args:
        images: uint8 (1, H, W, 3) each, whose activations give the ranges.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    partial = path.with_name(f".{path.name}.{os.getpid()}.onnx")
    try:
        with quiet():
            quantize_static(
                source,
                partial,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"CalibMovingAverage": False},
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the root logger, to which onnxruntime.quantization gives advice, prints errors only."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
