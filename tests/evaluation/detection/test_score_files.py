"""Files of other tools: COCO json out and in, csv, and mixtures of them; damaged ones are one line."""

import json

import numpy as np
import pandas as pd
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.detection.coco import coco_scores
from finetune.evaluation.detection.coco_json import read_coco, to_coco, write_coco
from finetune.evaluation.detection.score_files import score_files
from tests.evaluation.detection.test_detections import assert_same
from tests.evaluation.detection.worlds import random_table, table

SIDES = ("left", "top", "right", "bottom")
BOX = (0.0, 0.0, 10.0, 10.0)


def example():
    truths = [[(BOX, 0), ((20, 20, 30, 40), 1, 1)], [], [(BOX, 1)]]
    detected = [[(BOX, 0.5, 0)], [(BOX, 0.25, 1)], []]
    return table(truths, detected, ["a", "b"], ["p", "q", "p"], age=[1, 2, 3])


def csvs(folder, detections):
    """The same as two csv files."""
    true, found, samples = detections.truths, detections.boxes, detections.images["sample"]

    def frame(boxes, **columns):
        names = {"sample": samples.to_numpy()[boxes.image], "label": np.array(detections.classes)[boxes.label]}
        return pd.DataFrame({**names, **dict(zip(SIDES, boxes.corners.T, strict=True)), **columns})

    labels = samples.to_frame().merge(frame(true, ignored=true.ignored.astype(int)), how="left")
    labels.merge(detections.images[["sample", "patient", "age"]]).to_csv(folder / "labels.csv", index=False)
    frame(found, score=found.score).to_csv(folder / "results.csv", index=False)
    return folder / "results.csv", folder / "labels.csv"


def test_coco_json_there_and_back(tmp_path):
    written = example()
    write_coco(written, tmp_path / "truth.json", tmp_path / "results.json")
    assert_same(score_files(tmp_path / "results.json", tmp_path / "truth.json"), written)
    truth, results = to_coco(written)
    assert truth["annotations"][1] == {
        "id": 2, "image_id": 1, "category_id": 2, "bbox": [20, 20, 10, 20], "area": 200, "iscrowd": 1
    }  # fmt: skip
    assert results[1] == {"image_id": 2, "category_id": 2, "bbox": [0, 0, 10, 10], "score": 0.25}


def test_all_mixtures_are_the_same(tmp_path):
    written = example()
    write_coco(written, tmp_path / "truth.json", tmp_path / "results.json")
    results, labels = csvs(tmp_path, written)
    assert_same(score_files(results, labels), written)
    assert_same(score_files(results, tmp_path / "truth.json"), written)
    named = [
        {**r, "image_id": f"{r['image_id'] - 1}.png", "category_id": "ab"[r["category_id"] - 1]}
        for r in to_coco(written)[1]
    ]
    (tmp_path / "named.json").write_text(json.dumps(named))
    assert_same(score_files(tmp_path / "named.json", labels), written)


def test_foreign_ids_and_areas_are_taken(tmp_path):
    truth = {
        "images": [{"id": 70, "file_name": "x.png", "width": 9, "height": 8}, {"id": 3, "file_name": "y.png"}],
        "categories": [{"id": 9, "name": "late"}, {"id": 2, "name": "early"}],
        "annotations": [
            {"id": 0, "image_id": 3, "category_id": 9, "bbox": [0, 0, 100, 100], "area": 50.0, "iscrowd": 0}
        ],
    }
    results = [{"image_id": 3, "category_id": 9, "bbox": [0, 0, 100, 100], "score": 1}]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps(results))
    read = score_files(tmp_path / "r.json", tmp_path / "t.json")
    assert (read.classes, read.truths.image.tolist(), read.truths.label.tolist()) == (["early", "late"], [1], [1])
    scores = coco_scores(read)["late"]
    assert scores["ap_small"] == pytest.approx(1)  # by the object's outline, not by its box
    assert np.isnan(scores["ap_large"])
    assert read.images["image_width"].tolist()[0] == 9


def test_random_tables_score_the_same_after_json(tmp_path):
    written = random_table(np.random.default_rng(0), images=30)
    write_coco(written, tmp_path / "truth.json", tmp_path / "results.json")
    read = read_coco(tmp_path / "truth.json", tmp_path / "results.json")
    for name, scores in coco_scores(written).items():
        assert coco_scores(read)[name] == pytest.approx(scores, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: t.pop("images"), "is no COCO truth"),
        (lambda t, r: t["annotations"].append({"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]}), "image_id=99"),
        (
            lambda t, r: t["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1]}),
            "must be left, top",
        ),
        (lambda t, r: t["annotations"].append({"image_id": 1, "category_id": 1}), "entry 3 of annotations lacks bbox"),
        (
            lambda t, r: t["annotations"].append({"image_id": [1], "category_id": 1, "bbox": []}),
            "must be a number or a name",
        ),
        (lambda t, r: t["images"].append({"id": 1}), "two of its images have the same id"),
        (lambda t, r: t["images"].append(None), "entry 3 of images lacks id"),
        (lambda t, r: r.append({"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}), "category_id=7"),
        (lambda t, r: r.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}), "is no box"),
        (
            lambda t, r: r.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": "x"}),
            "score must be a number",
        ),
        (lambda t, r: r.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 2}), "score=2.0"),
        (
            lambda t, r: r.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, [1]], "score": 1}),
            "bbox must be a number",
        ),
    ],
)
def test_damaged_json_is_one_line(tmp_path, change, message):
    truth, results = to_coco(example())
    change(truth, results)
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps(results))
    with pytest.raises(FinetuneError) as error:
        score_files(tmp_path / "r.json", tmp_path / "t.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("results", "labels", "message"),
    [
        ("sample,label,left,top,right,bottom\n", None, "lacks ['score']"),
        ("sample,label,left,top,right,bottom,score\nz.png,a,0,0,1,1,1\n", None, "sample 'z.png', which is no image"),
        ("sample,label,left,top,right,bottom,score\n0.png,z,0,0,1,1,1\n", None, "label 'z', which is no class"),
        (None, "sample,label,left,top,right,bottom\n0.png,,,,,\n", "no row has a label"),
        (None, "sample,label,left,top,right,bottom\n0.png,a,,0,1,1\n", "a box of '0.png' has no left"),
        (
            None,
            "sample,label,left,top,right,bottom,patient\n0.png,a,0,0,1,1,p\n0.png,a,0,0,1,1,q\n",
            "rows of 2 patients",
        ),
    ],
)
def test_damaged_csv_is_one_line(tmp_path, results, labels, message):
    paths = csvs(tmp_path, example())
    for path, text in zip(paths, (results, labels), strict=True):
        if text is not None:
            path.write_text(text)
    with pytest.raises(FinetuneError) as error:
        score_files(*paths)
    assert message in str(error.value)
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(FinetuneError, match="cannot be read as json"):
        score_files(tmp_path / "r.json", tmp_path / "r.json")
