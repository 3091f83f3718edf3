"""Boxes and masks: what they hold, what they refuse, and what the table and its hash make of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.annotations import Boxes, MaskFile
from finetune.data.masks import decode_rle
from finetune.data.targets import box_labels
from finetune.errors import BadImage, FinetuneError
from tests.data.making import make_table, save


def test_boxes_are_written_as_sides_and_held_as_corners():
    sides = [("Pneumonia", 264.0, 152.0, 213.5, 379.0), ("No Finding", 0.0, 0.0, 1.0, 1.0)]
    boxes = Boxes.from_sides(sides)
    assert boxes.corners.tolist() == [[264, 152, 477.5, 531], [0, 0, 1, 1]]
    assert boxes.labels == ("Pneumonia", "No Finding")
    assert boxes.sides() == sides
    assert boxes.content() == "Pneumonia 264 152 213.5 379; No Finding 0 0 1 1"
    empty = Boxes.from_sides([])
    assert (len(empty), empty.corners.shape, empty.content()) == (0, (0, 4), "")


@pytest.mark.parametrize(
    ("corners", "labels", "message"),
    [
        ([[0, 0, 1, 1]], ("a", "b"), "1 boxes have 2 labels"),
        ([[0, 0, 1, 1]], ("a",), r"1 boxes have 2 marks in `ignored`"),
        ([[3, 0, 1, 1]], ("a",), r"\[3.0, 0.0, 1.0, 1.0\] is no box"),
        ([[0, 0, np.nan, 1]], ("a",), "is no box"),
    ],
)
def test_what_is_no_box_is_refused(corners, labels, message):
    with pytest.raises(FinetuneError, match=message):
        Boxes(np.array(corners), labels, ignored=(True, True) if "ignored" in message else ())


def test_ignored_boxes_change_the_content_and_name_no_class():
    sides = [("mass", 1, 2, 3, 4), ("node", 0, 0, 1, 1)]
    boxes = Boxes.from_sides(sides)
    crowd = replace(boxes, ignored=(False, True))
    assert boxes.ignored == (False, False)
    assert (crowd.target_labels, crowd.labels) == (["mass"], ("mass", "node"))
    assert box_labels([crowd]) == ["mass"]
    assert crowd.content() == f"{boxes.content()} ignored"


def test_masks_are_decoded_on_demand(tmp_path):
    pixels = np.array([[0, 1, 2], [0, 0, 2]], np.uint8)
    save(pixels, tmp_path / "masks/a.png")
    np.testing.assert_array_equal(MaskFile("masks/a.png").read(tmp_path), pixels)
    palette = Image.fromarray(pixels).convert("P")
    palette.putdata(pixels.ravel().tolist())
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(MaskFile("p.png").read(tmp_path), pixels)  # numbers of classes, not colours
    Image.fromarray(pixels > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(MaskFile("bits.png").read(tmp_path), pixels > 0)
    np.savez(tmp_path / "m.npz", masks=pixels[None])
    np.testing.assert_array_equal(MaskFile("m.npz::masks/0").read(tmp_path), pixels)
    for name, message in (("absent.png", "cannot be read as a mask"), ("rgb.png", "of mode RGB"), ("x.png", "cannot")):
        if name == "rgb.png":
            save(np.array([[[0, 0, 0], [0, 1, 0]]], np.uint8), tmp_path / name)
        if name == "x.png":
            (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(BadImage, match=message):
            MaskFile(name).read(tmp_path)


def test_runs_of_pixels_go_down_the_columns():
    # 2 high, 3 wide: pixels 2, 3 are the lower left and the upper middle one; pixel 6 is the last
    assert MaskFile(rle="2 2 6 1", size=(2, 3)).read(Path()).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert decode_rle("", 2, 3).sum() == 0
    for rle, message in (
        ("1", "pairs of whole numbers"),
        ("a 1", "pairs"),
        ("6 2", "outside 2 x 3"),
        ("0 1", "outside"),
    ):
        with pytest.raises(FinetuneError, match=message):
            decode_rle(rle, 2, 3)
    for options in ({}, {"path": "a.png", "rle": ""}, {"rle": "", "layers": ()}):
        with pytest.raises(FinetuneError, match="a mask needs either path, or rle, or layers"):
            MaskFile(**options)
    assert MaskFile(rle="2 1").read(Path(), size=(2, 3)).tolist() == [[0, 0, 0], [1, 0, 0]]  # the image's size
    with pytest.raises(FinetuneError, match=r"needs size=\(height, width\)"):
        MaskFile(rle="2 1").read(Path())


def test_the_table_checks_them_and_hashes_them():
    table = make_table(Path("/data"), targets=[[1], [0], [1]])
    boxes, mask = Boxes.from_sides([("c0", 1, 2, 3, 4)]), MaskFile("m/0.png")
    annotated = replace(table, annotations={"boxes": [boxes, None, Boxes.from_sides([])], "lung": [mask, None, None]})
    annotated.check()
    for entries, message in (
        ([boxes], "has 3 rows, but 1 entries in the annotation x"),
        ([boxes, mask, None], r"the annotation x holds \['Boxes', 'MaskFile'\]"),
        (["a 1 1 1 1", None, None], r"the annotation x holds \['str'\]"),
        ([mask, MaskFile("../m.png"), None], "x must hold paths of masks under data.root=/data; 1 row.*row 1"),
    ):
        with pytest.raises(FinetuneError, match=message):
            replace(table, annotations={"x": entries}).check()  # type: ignore[dict-item]
    variants = [
        {},
        {"a": [boxes, None, None]},
        {"b": [boxes, None, None]},
        {"a": [None, boxes, None]},
        {"a": [boxes, None, Boxes.from_sides([])]},
        {"a": [mask, None, None]},
        {"a": [MaskFile(rle="", size=(1, 2)), None, None]},
        {"a": [MaskFile(rle="", size=(2, 1)), None, None]},
    ]
    hashes = {replace(table, annotations=annotations).hash() for annotations in variants}  # type: ignore[arg-type]
    assert len(hashes) == len(variants)
    assert replace(table, annotations={}).hash() == table.hash()
