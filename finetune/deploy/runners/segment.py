"""Masks of images: python run_onnx.py FILE.onnx FOLDER IMAGE ...   Needs onnxruntime, numpy and Pillow.

FOLDER/NAME.png has the size of the image NAME. A pixel's value is its place in `classes` of FILE.onnx.json; where
regions may overlap, bit k is region k.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(file, folder, paths):
    about = json.loads(Path(f"{file}.json").read_text(encoding="utf-8"))
    if about["size"] != "any":
        sys.exit(f"{file} takes images in the network's square and has no masks: export with size=any.")
    session = onnxruntime.InferenceSession(file)
    for path in paths:
        image = Image.open(path)
        if image.mode not in ("L", "RGB", "1", "P", "CMYK", "YCbCr") or "transparency" in image.info:
            sys.exit(f"{path} has mode {image.mode}: save it as 8-bit gray or RGB, without transparency.")
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
        (label_map,) = session.run(["label_map"], {"image": pixels})
        target = Path(folder, Path(path).stem + ".png")
        if target.exists():
            sys.exit(f"{target} exists already.")
        Image.fromarray(label_map[0]).save(target)
        print(path, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
