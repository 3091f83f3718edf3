"""Boxes of images as CSV: python run_onnx.py FILE.onnx IMAGE ...   Needs onnxruntime, numpy and Pillow.

left, top, right and bottom are in pixels of the image. Every box above the head's least score is listed.
"""

import csv
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def suppressed(boxes, scores, labels, about):
    """The numbers of the boxes that stay: the lesser of two that overlap within a class is left out."""
    stay: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] <= about["score"] or len(stay) == about["most"]:
            break
        same = np.array([j for j in stay if labels[j] == labels[i]], np.int64)
        sides = np.minimum(boxes[same, 2:], boxes[i, 2:]) - np.maximum(boxes[same, :2], boxes[i, :2])
        shared = sides.clip(0).prod(1)
        if (shared <= about["iou"] * (areas[same] + areas[i] - shared)).all():
            stay.append(i)
    return stay


def main(file, paths):
    with open(f"{file}.json", encoding="utf-8") as text:
        about = json.load(text)
    session, table = onnxruntime.InferenceSession(file), csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "class", "score", "left", "top", "right", "bottom"])
    for path in paths:
        image = Image.open(path)
        if image.mode not in ("L", "RGB", "1", "P", "CMYK", "YCbCr") or "transparency" in image.info:
            sys.exit(f"{path} has mode {image.mode}: save it as 8-bit gray or RGB, without transparency.")
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
        outputs = dict(zip(about["outputs"], session.run(None, {"image": pixels}), strict=True))
        boxes, scores, labels = (outputs[name][0] for name in ("boxes", "scores", "labels"))
        place = outputs.get("placement", np.array([1, 1, 0, 0, 0, 0, *pixels.shape[2:0:-1]]))
        scale, offset, low, high = (np.tile(place[i : i + 2], 2) for i in (0, 2, 4, 6))
        for i in suppressed(boxes, scores, labels, about["suppression"]):
            corners = ((boxes[i] - offset) / scale).clip(low, high)
            if (corners[2:] > corners[:2]).all():
                table.writerow([path, about["classes"][labels[i]], *(f"{v:.9g}" for v in (scores[i], *corners))])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
