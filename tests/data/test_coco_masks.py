"""Segmentations of COCO files as masks of their categories."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.data.sources.coco import Coco
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from tests.data.test_mask_sources import LEFT, images, read


def coco(root: Path, annotations: list[dict], **options) -> SampleTable:
    images(root, "images/a.png", "images/b.png")
    listed = [{"id": k, "file_name": f"{name}.png", "height": 6, "width": 8} for k, name in enumerate("ab")]
    categories = [{"id": 1, "name": "lung"}, {"id": 2, "name": "heart"}]
    entries = [{"id": number, "image_id": 0, **entry} for number, entry in enumerate(annotations)]
    content = {"images": listed, "annotations": entries, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    return Coco(root, target="mask", **options).table()


SQUARE = {"category_id": 1, "segmentation": [[1, 1, 3, 1, 3, 5, 1, 5]]}
RUNS = {"category_id": 2, "segmentation": {"size": [6, 8], "counts": [0, 2, 46]}, "iscrowd": 1}


def test_polygons_and_runs_of_coco_are_joined_per_category(tmp_path):
    more = {"category_id": 1, "segmentation": [[5, 1, 6, 1, 6, 2, 5, 2]]}
    table = coco(tmp_path, [SQUARE, RUNS, more])
    assert (table.regions.names, table.regions.overlapping) == (["lung", "heart"], True)
    expected = LEFT.copy()
    expected[1, 5] = 1
    expected[:2, 0] |= 2
    np.testing.assert_array_equal(read(table, 0), expected)
    assert not read(table, 1).any()  # no annotation: nothing there
    assert table.annotations["mask"][1].known(table.regions).all()
    heart = coco(tmp_path, [SQUARE, RUNS], regions=["heart"], overlapping=False)
    assert heart.regions.names == ["background", "heart"]
    assert read(heart, 0).sum() == 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"category_id": 1, "segmentation": []}, r"annotations without a segmentation.*annotation 1"),
        ({"category_id": 1, "segmentation": "x"}, "neither polygons nor RLE"),
        ({"category_id": 1, "segmentation": [["a"]]}, "neither polygons nor RLE"),
        ({"category_id": 1, "segmentation": {"size": [6, 8], "counts": [1.5]}}, "neither polygons nor RLE"),
        ({"category_id": 1, "segmentation": {"size": [6], "counts": [48]}}, "RLE with a size that is none"),
        ({"category_id": 1}, "annotations without a segmentation"),
        ({"category_id": 3, "segmentation": [[1, 1, 3, 1, 3, 5]]}, "category that is not listed"),
    ],
)
def test_faults_of_coco(tmp_path, entry, message):
    with pytest.raises(FinetuneError, match=message):
        coco(tmp_path, [RUNS, entry])
    table = coco(tmp_path, [RUNS, entry], on_bad="skip")
    known = table.annotations["mask"][0].known(table.regions).tolist()
    assert known == [entry["category_id"] != 1, True]
    assert any(note.startswith("Left out (data.on_bad=skip): 1 ") for note in table.notes)
