"""Fakes of the layouts that boxes come in: images of 40 x 30 pixels, written from one list of boxes."""

import json
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 40, 30
Drawn = dict[str, list[tuple[str, float, float, float, float]]]
"""Name of an image -> label, left, top, width, height of its boxes."""

DRAWN: Drawn = {
    "a": [("node", 1, 2, 10, 5), ("mass", 20, 10, 20, 20)],
    "b": [],
    "c": [("mass", 0, 0, 40, 30)],
}


def images(root: Path, folder: str, names=DRAWN) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("L", (WIDTH, HEIGHT), 40 * number).save(root / folder / f"{name}.png")
    return root


def coco_json(drawn: Drawn = DRAWN, **more) -> dict:
    labels = sorted({box[0] for boxes in drawn.values() for box in boxes})
    content: dict = {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(drawn)
        ],
        "categories": [{"id": 7 + number, "name": label} for number, label in enumerate(labels)],
        "annotations": [],
    }
    for number, boxes in enumerate(drawn.values()):
        for label, *sides in boxes:
            entry = {"id": len(content["annotations"]), "image_id": number, "bbox": sides}
            content["annotations"].append({**entry, "category_id": 7 + labels.index(label), "iscrowd": 0})
    return {**content, **more}


def make_coco(root: Path, drawn: Drawn = DRAWN, content: dict | None = None) -> Path:
    images(root, "images", drawn)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/all.json").write_text(json.dumps(coco_json(drawn) if content is None else content))
    return root


def make_voc(root: Path, drawn: Drawn = DRAWN) -> Path:
    images(root, "JPEGImages", drawn)
    (root / "Annotations").mkdir(exist_ok=True)
    for name, boxes in drawn.items():
        objects = [
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax></bndbox></object>"
            for label, left, top, width, height in boxes
        ]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>1</depth></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def make_yolo(root: Path, drawn: Drawn = DRAWN, names: str | None = None) -> Path:
    images(root, "images", drawn)
    labels = sorted({box[0] for boxes in drawn.values() for box in boxes})
    (root / "labels").mkdir(exist_ok=True)
    (root / "data.yaml").write_text(names or f"nc: {len(labels)}\nnames: {labels}\n")
    for name, boxes in drawn.items():
        lines = [
            f"{labels.index(label)} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
            for label, x, y, w, h in boxes
        ]
        if lines:
            (root / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_csv(root: Path, drawn: Drawn = DRAWN, header: str = "path,x,y,w,h,label") -> Path:
    images(root, ".", drawn)
    lines = [header]
    for name, boxes in drawn.items():
        lines += [",".join([f"{name}.png", *map(str, sides), label]) for label, *sides in boxes]
        lines += [f"{name}.png,,,,,"] * (not boxes)
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root
