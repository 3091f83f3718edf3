"""The boxes of NIH ChestX-ray14: scaled to the image that lies there, and kept apart from the metadata."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.annotations import Boxes
from finetune.data.audit.shortcuts import shortcuts
from finetune.data.phantom.dataset import make_phantoms
from finetune.data.sources.chestxray import ChestXray
from finetune.data.sources.joint import Joint
from finetune.errors import FinetuneError
from finetune.evaluation.classification.subgroups import wanted_columns
from tests.data.making import make_table, save
from tests.data.test_sources import nih

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def boxed(root: Path, *lines: str, header: str = HEADER) -> Path:
    nih(root)
    for name, shape in (("00000001_000", (1024, 1024)), ("00000002_000", (512, 512)), ("00000002_001", (256, 512))):
        save(np.zeros(shape, np.uint8), root / f"images/{name}.png")
    (root / "BBox_List_2017.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def test_boxes_shrink_with_the_image(tmp_path):
    lines = [
        "00000001_000.png,Cardiomegaly,100.5,200,300,400,,,",
        "00000001_000.png,Infiltrate,1,2,3,4",
        "00000002_000.png,Effusion,100,200,300,400,,,",
        "00000002_001.png,Hernia,100,200,300,400,,,",
        "00000003_000.png,Pneumonia,1,1,1,1,,,",  # an empty file
        "00099999_000.png,Mass,1,1,1,1,,,",  # absent
    ]
    table = ChestXray(boxed(tmp_path, *lines)).table()
    assert table.metadata == ["age", "sex", "view", "follow_up"]
    assert "boxes" not in table.frame
    assert not any(boxes.complete for boxes in table.annotations["boxes"])  # few images were looked at for boxes
    assert [boxes.sides() for boxes in table.annotations["boxes"]] == [
        [("Cardiomegaly", 100.5, 200, 300, 400), ("Infiltration", 1, 2, 3, 4)],
        [("Effusion", 50, 100, 150, 200)],
        [("Hernia", 50, 50, 150, 100)],
        [],
    ]
    assert "2 of 3 images with boxes are not of the published 1024 px: boxes are scaled." in table.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("00000001_000.png,Mass,1,2,3", "line 2: .* is not IMAGE, FINDING, X, Y, WIDTH, HEIGHT"),
        ("00000001_000.png,Mass,1,2,3,x", "line 2"),
        ("00000001_000.png,Mass,1,2,3,0", "is no box"),
        ("00000001_000.png,Mass,-1,2,3,4", "is no box"),
        ("00000001_000.png,Masses,1,2,3,4", "'Masses' is an unknown finding"),
    ],
)
def test_a_line_that_is_no_box_is_named(tmp_path, line, message):
    with pytest.raises(FinetuneError, match=message):
        ChestXray(boxed(tmp_path, line)).table()


def test_without_the_list_there_is_no_annotation(tmp_path):
    assert ChestXray(nih(tmp_path)).table().annotations == {}


def test_the_synthetic_sets_boxes_are_taken_as_they_are(tmp_path):
    root = make_phantoms(tmp_path / "phantom", n_images=12, size=64, seed=3, workers=1)
    table = ChestXray(root).table()
    listed = (root / "BBox_List_2017.csv").read_text().splitlines()[1:]
    result = [box for boxes in table.annotations["boxes"] for box in boxes.sides()]
    assert len(result) == len(listed) > 2
    assert max(left + width for _, left, _, width, _ in result) <= 64
    name, finding, left = listed[0].split(",")[:3]
    (row,) = (row for row, path in enumerate(table.paths) if path.endswith(name))
    assert table.annotations["boxes"][row].sides()[0][:2] == (finding, pytest.approx(float(left)))


def test_the_real_boxes(shared_data):
    table = ChestXray(shared_data / "nih").table()
    pairs = zip(table.paths, table.annotations["boxes"], strict=True)
    boxes = {path: entry.sides() for path, entry in pairs if len(entry)}
    assert len(boxes) == 12
    assert sum(len(result) for result in boxes.values()) == 15
    assert all(left + width <= 512 and top + height <= 512 for f in boxes.values() for _, left, top, width, height in f)
    for path, result in boxes.items():  # each is of a finding that the image has
        row = table.paths.index(path)
        assert all(table.frame[f"target_{name}"][row] == 1 for name, *_ in result)


def test_rows_of_a_set_without_boxes_have_none(tmp_path):
    first = boxed(tmp_path / "a", "00000001_000.png,Cardiomegaly,100,200,300,400,,,")
    second = nih(tmp_path / "b")
    table = Joint({"a": ChestXray(first), "b": ChestXray(second)}).table()
    entries = table.annotations["boxes"]
    assert [None if entry is None else len(entry) for entry in entries] == [1, 0, 0, 0, None, None, None, None]


def test_boxes_are_no_shortcut_and_no_group():
    target = np.repeat([1.0, 0.0], 200)
    made = make_table(Path("/data"), None, target[:, None].tolist(), ["train", "val"] * 200)
    text = np.where(target == 1, "c0 1 1 2 2", "")  # tells the label wholly
    entries = [Boxes.from_sides([("c0", 1, 1, 2, 2)] if value else []) for value in target]
    boxes = replace(made, annotations={"boxes": entries}).check()
    mark = replace(made, frame=made.frame.assign(mark=text), metadata=["mark"])
    assert shortcuts(boxes) == []
    assert [result.column for result in shortcuts(mark)] == ["mark"]
    assert wanted_columns(["age", "sex"], "all") == ["age", "sex"]


def test_boxes_are_hashed_as_the_text_that_older_runs_noted(tmp_path):
    """A run of version 0.1.0, whose table had the boxes in its last metadata column, resumes."""
    line = "00000001_000.png,Cardiomegaly,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,"
    table = ChestXray(boxed(tmp_path, line)).table()
    text = "Cardiomegaly 225.0847458 547.0192168 86.77966102 79.18644068"
    old = table.frame.assign(boxes=[text, "", "", ""])
    assert table.hash() == replace(table, frame=old, metadata=[*table.metadata, "boxes"], annotations={}).hash()
    moved = [Boxes.from_sides([("Cardiomegaly", 225.1, 547, 86, 79)]), *table.annotations["boxes"][1:]]
    unknown = [table.annotations["boxes"][0], None, *table.annotations["boxes"][2:]]
    hashes = {replace(table, annotations={"boxes": entries}).hash() for entries in (moved, unknown)}
    assert len({table.hash(), replace(table, annotations={}).hash(), *hashes}) == 4
