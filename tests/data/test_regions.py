"""Regions and the masks that hold them: values, bit fields, layers, and what the table makes of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.table import SampleTable
from finetune.data.targets import annotation_strata
from finetune.errors import BadImage, FinetuneError
from tests.data.making import make_table, save

LUNGS = Regions(["background", "left", "right"])
CHEST = Regions(["lung", "heart"], overlapping=True)
ROOT = Path("/data")


def masked(masks, regions, root=ROOT) -> SampleTable:
    table = make_table(root, targets=[[0]] * len(masks))
    frame = table.frame[["path", "patient", "split"]]
    return replace(table, frame=frame, classes=[], kind="none", annotations={"mask": masks},
                   other_targets={"mask": "mask"}, regions=regions)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "overlapping", "message"),
    [
        (["lung"], False, "must be background, which is pixel value 0"),
        (["background"], False, "there is no region"),
        (["background", "a", "a"], False, "distinct names"),
        (["background", " "], False, "distinct names"),
        ([], True, "there is no region"),
        (["background", "a"], True, "have no background"),
        (list("abcdefghi"), True, "9 regions; masks of regions that overlap take up to 8. Choose some"),
        (["background", *map(str, range(255))], False, "256 regions.*take up to 255"),
    ],
)
def test_regions_that_cannot_be(names, overlapping, message):
    with pytest.raises(FinetuneError, match=message):
        Regions(names, overlapping)


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))))
def test_bit_fields_of_any_regions_come_apart_again(layers):
    regions = Regions([f"r{k}" for k in range(len(layers))], overlapping=True)
    mask = (layers << np.arange(len(layers))[:, None, None]).sum(axis=0).astype(np.uint8)
    np.testing.assert_array_equal(regions.bits(mask), layers)
    assert regions.wrong_values(mask) == []
    if len(layers) < 8:
        assert regions.wrong_values(np.full((1, 1), 1 << len(layers), np.uint8)) == [1 << len(layers)]


def test_values_of_exclusive_regions():
    mask = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    assert LUNGS.bits(mask).sum(axis=(1, 2)).tolist() == [2, 1, 2]  # what is ignored is nowhere
    assert LUNGS.wrong_values(mask) == []
    assert LUNGS.wrong_values(mask + 1) == [3]
    assert LUNGS.bits(np.stack([mask, mask])).shape == (2, 3, 2, 3)


def test_layers_are_joined(tmp_path):
    save(np.array([[255, 255, 0], [0, 0, 0]], np.uint8), tmp_path / "a.png")
    layers = ((0, Layer("a.png")), (1, Layer(rle="3 1")), (1, Layer(counts=(5, 1))))  # two pieces of one region
    both = MaskFile(layers=layers)
    assert both.read(tmp_path, CHEST, (2, 3)).tolist() == [[1, 3, 0], [0, 0, 2]]
    assert MaskFile(layers=layers, size=(2, 3)).read(tmp_path, CHEST).tolist() == [[1, 3, 0], [0, 0, 2]]
    assert both.paths == ["a.png"]
    assert both.moved("x").paths == ["x/a.png"]
    assert MaskFile("a.png").moved("x").paths == ["x/a.png"]
    assert MaskFile(rle="").moved("x").rle == ""
    apart = MaskFile(layers=((1, Layer("a.png")), (2, Layer(polygons=((2, 1, 3, 1, 3, 2, 2, 2),)))))
    assert apart.read(tmp_path, LUNGS, (2, 3)).tolist() == [[1, 1, 0], [0, 0, 2]]
    shared = MaskFile(layers=((1, Layer("a.png")), (2, Layer(rle="3 1"))))
    with pytest.raises(FinetuneError, match=r"left and right share 1 pixel\(s\).*data.overlapping=true"):
        shared.read(tmp_path, LUNGS, (2, 3))
    assert MaskFile(layers=()).read(tmp_path, CHEST, (2, 3)).sum() == 0
    for options, message in (({}, "one of path, rle"), ({"path": "a", "rle": ""}, "one of path, rle")):
        with pytest.raises(FinetuneError, match=message):
            Layer(**options)
    with pytest.raises(FinetuneError, match="only be read with its regions"):
        both.read(tmp_path)
    with pytest.raises(FinetuneError, match="needs size"):
        MaskFile(layers=((0, Layer(rle="")),)).read(tmp_path, CHEST)


def test_values_are_mapped_and_wrong_ones_are_named(tmp_path):
    save(np.array([[0, 255], [7, 0]], np.uint8), tmp_path / "m.png")
    mapped = MaskFile("m.png", values=((0, 0), (7, 2), (255, 1)))
    assert mapped.read(tmp_path, LUNGS, (2, 2)).tolist() == [[0, 1], [2, 0]]
    with pytest.raises(BadImage, match=r"m.png: holds 7, which data.regions names no region for; it has 0, 255"):
        MaskFile("m.png", values=((0, 0), (255, 1))).read(tmp_path, LUNGS)
    with pytest.raises(BadImage, match=r"m.png: holds 7, which is no region of background, left, right"):
        MaskFile("m.png").read(tmp_path, LUNGS)  # 255 is ignored
    with pytest.raises(BadImage, match="holds 7, 255, which is no region of lung, heart"):
        MaskFile("m.png").read(tmp_path, CHEST)


def test_another_size_than_the_image_is_named(tmp_path):
    save(np.zeros((2, 3), np.uint8), tmp_path / "m.png")
    for mask in (MaskFile("m.png"), MaskFile(layers=((0, Layer("m.png")),))):
        with pytest.raises(BadImage, match=r"m.png: has 2 x 3 pixels, the image 4 x 6"):
            mask.read(tmp_path, CHEST, (4, 6))
    with pytest.raises(FinetuneError, match="its size is 2 x 2 pixels, the image has 4 x 6"):
        MaskFile(rle="1 1", size=(2, 2)).read(tmp_path, CHEST, (4, 6))


def test_what_is_known_of_each_region():
    some = MaskFile(layers=((0, Layer(rle="")),), unknown=(1,))
    assert some.known(CHEST).tolist() == [True, False]
    assert MaskFile("a.png").known(CHEST).tolist() == [True, True]
    assert MaskFile(layers=((1, Layer(rle="")),), unknown=(2,)).known(LUNGS).tolist() == [False] * 3


def test_the_table_checks_and_hashes_regions():
    masks = [MaskFile("a.png"), None]
    table = masked(masks, CHEST).check()
    others = [
        replace(table, regions=Regions(["heart", "lung"], True)),
        replace(table, regions=Regions(["background", "lung", "heart"])),
        masked([MaskFile("a.png", values=((0, 0), (255, 1))), None], CHEST),
        masked([MaskFile(layers=((0, Layer("a.png")),)), None], CHEST),
        masked([MaskFile(layers=((0, Layer("a.png")),), unknown=(1,)), None], CHEST),
    ]
    assert len({other.check().hash() for other in [table, *others]}) == 6
    plain = make_table(ROOT)
    assert plain.hash() == replace(plain, regions=None).hash()
    for wrong, message in (
        (replace(table, regions=None), "go together.*regions=None"),
        (replace(plain, regions=CHEST), "go together; the targets are {}"),
        (masked([MaskFile(layers=((2, Layer("a.png")),)), None], CHEST), "layers of the regions 0 to 1"),
        (masked([MaskFile(layers=((0, Layer("a.png")),)), None], LUNGS), "layers of the regions 1 to 2"),
        (masked([MaskFile(layers=((0, Layer("../a.png")),)), None], CHEST), "paths of masks under data.root"),
    ):
        with pytest.raises(FinetuneError, match=message):
            wrong.check()


def test_splits_are_balanced_over_the_regions_that_layers_mark():
    rows = [
        MaskFile(layers=((0, Layer("a.png")), (1, Layer(rle="1 1")))),
        MaskFile(layers=((0, Layer(polygons=())), (1, Layer(rle=" ")))),
        None,
    ]
    assert annotation_strata(rows).astype(int).tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
