"""Probabilities of images as CSV: python run_onnx.py FILE.onnx IMAGE ...   Needs onnxruntime, numpy and Pillow."""

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path, about):  # -> uint8 (1, H, W, 3)
    image = Image.open(path)
    if image.mode not in ("L", "RGB", "1", "P", "CMYK", "YCbCr") or "transparency" in image.info:
        sys.exit(f"{path} has mode {image.mode}: save it as 8-bit gray or RGB, without transparency.")
    if about["decode_side"]:
        image.draft("", (about["decode_side"],) * 2)  # a large JPEG is decoded at a fraction of its size
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    side = about["preprocessing"]["image_size"]
    if about["size"] == "square" and pixels.shape[1:3] != (side, side):
        sys.exit(
            f"{path} is of {pixels.shape[1:3]} pixels: this graph takes images of {side} x {side}, resized before."
        )
    return pixels


def main(file, paths):
    with open(f"{file}.json", encoding="utf-8") as text:
        about = json.load(text)
    session, names = onnxruntime.InferenceSession(file), about["classes"]
    columns = [f"prob_{name}" for name in names] + [f"calibrated_{name}" for name in about["calibrated"]]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", *columns, "decision"])
    for path in paths:
        outputs = session.run(about["outputs"][1:], {"image": read(path, about)})
        values = np.concatenate([output[0] for output in outputs])
        above = [
            n
            for n, p in zip(names, values, strict=False)
            if p >= about["thresholds"].get(n, {"threshold": 2})["threshold"]
        ]
        exclusive = about["meaning"] == "exclusive"
        decision = names[values[: len(names)].argmax()] if exclusive else "|".join(above) or "none"
        table.writerow([path, *(f"{value:.9g}" for value in values), decision])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
