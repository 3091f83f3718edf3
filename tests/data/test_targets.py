"""Every type of target through check, hash, split, audit and batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.annotations import Boxes, MaskFile, Regions
from finetune.data.audit.audit import audit_images, audit_table, check_trainable
from finetune.data.cache.image_cache import ImageCache
from finetune.data.class_map import to_model_classes
from finetune.data.loading.annotated import MIN_VISIBLE, AnnotatedTargets
from finetune.data.loading.dataset import ImageDataset
from finetune.data.loading.module import ImageData
from finetune.data.sources.joint import Joint
from finetune.data.splits import assign_splits
from finetune.data.table import SampleTable
from finetune.data.targets import annotation_strata, column_strata
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.audit.test_audit import facts
from tests.data.making import make_table, save

NAN = np.nan
ROOT = Path("/data")


def only(table: SampleTable, columns=None, annotations=None, **types: str) -> SampleTable:
    """The table with these targets in place of its classes."""
    frame = table.frame[["path", "patient", "split"]].assign(**{f"target_{k}": v for k, v in (columns or {}).items()})
    return replace(
        table, frame=frame, classes=[], kind="none", annotations=annotations or {}, other_targets=types,
        regions=Regions(["background", "lung"]) if "mask" in types.values() else None,
    )  # fmt: skip


def numbers(n: int = 200, splits=None) -> SampleTable:
    months = np.arange(n) * 1.5 - 3
    months[::10] = NAN
    grades = np.repeat([0.0, 1, 2, 3], n // 4)
    return only(make_table(ROOT, splits=splits, targets=[[0]] * n), {"months": months, "stage": grades},
                months="number", stage="grade")  # fmt: skip


BOX = Boxes.from_sides([("mass", 1, 1, 2, 2), ("node", 0, 0, 1, 1)])
NONE = Boxes.from_sides([])
CROWD = replace(BOX, ignored=(True, False))


def test_the_table_knows_the_type_of_each_target():
    assert make_table(ROOT, targets=[[1, 0]]).target_types == {"c0": "finding", "c1": "finding"}
    assert make_table(ROOT, targets=[[1, 0]], kind="multiclass").target_types == {"c0": "class", "c1": "class"}
    table = numbers().check()
    assert table.target_types == {"months": "number", "stage": "grade"}
    assert table.target_columns == ["target_months", "target_stage"]
    assert table.targets().shape == (200, 2)
    both = replace(make_table(ROOT), annotations={"lesions": [BOX]}, other_targets={"lesions": "boxes"}).check()
    assert both.target_types == {"c0": "finding", "lesions": "boxes"}
    assert both.targets().shape == (1, 1)


@pytest.mark.parametrize(
    ("columns", "types", "annotations", "message"),
    [
        ({"a": [1.0, np.inf]}, {"a": "number"}, {}, "target_a must be finite, or NaN .*row 1: .*inf"),
        ({"a": [1.0, 1.5]}, {"a": "grade"}, {}, "target_a must be a whole number of 0 or more.*row 1: .*1.5"),
        ({"a": [-1.0, 1]}, {"a": "grade"}, {}, "target_a must be a whole number"),
        ({"a": [1, 2]}, {"a": "number"}, {}, "target_a must be float, not int64"),
        ({}, {"a": "number"}, {}, r"\['target_a'\] are missing"),
        ({"a": [1.0, 2.0]}, {"a": "grades"}, {}, "the type of target a=grades is not known. Did you mean grade"),
        ({"a": [1.0, 2.0]}, {" ": "grade"}, {}, "target ' ' must have a unique name"),
        (
            {},
            {"a": "boxes"},
            {},
            "target a is of type boxes, but the annotation a holds none; there are no annotations",
        ),
        ({}, {"a": "mask"}, {"a": [BOX, None]}, "target a is of type mask, but the annotation a holds none"),
        ({}, {"a": "boxes"}, {"a": [BOX]}, "has 2 rows, but 1 entries in the annotation a"),
        ({}, {"a": "boxes", "b": "boxes"}, {"a": [BOX, None], "b": [BOX, None]}, "are all of type boxes"),
        ({}, {}, {}, "kind='none', choose from"),
    ],
)
def test_check_names_the_target_and_the_row(columns, types, annotations, message):
    with pytest.raises(FinetuneError, match=message):
        only(make_table(ROOT, targets=[[0], [1]]), columns, annotations, **types).check()


def test_the_hash_covers_targets_and_their_types():
    table = numbers()
    as_number = replace(table, other_targets={"months": "number", "stage": "number"})
    changed = replace(table, frame=table.frame.assign(target_months=table.frame["target_months"] + 1))
    masks = [MaskFile("m.png"), *[None] * 199]
    targets = replace(table, annotations={"lung": masks}, other_targets={**table.other_targets, "lung": "mask"})
    assert len({t.hash() for t in (table, as_number, changed, targets, replace(targets, annotations={}))}) == 5
    assert table.hash() == numbers().hash()


def test_numbers_are_balanced_by_quantile_and_grades_by_value():
    strata = column_strata(np.array([5, 1, 2, NAN, 3, 4.0]), "number")
    assert strata.astype(int).tolist() == [
        [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]
    ]  # fmt: skip
    assert column_strata(np.array([2, 0, NAN, 2.0]), "grade").tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]
    assert column_strata(np.arange(100.0), "grade").shape == (100, 5)  # many grades are as numbers
    assert column_strata(np.full(3, NAN), "number").shape == (3, 0)
    assert column_strata(np.ones(3), "number").sum(axis=1).tolist() == [1, 1, 1]
    split = assign_splits(numbers(), seed=1)
    strata = column_strata(split.frame["target_months"].to_numpy(), "number")
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        rows = split.rows(name)
        np.testing.assert_allclose(strata[rows].sum(axis=0), share * 36, atol=2)  # of 180 known in five parts
        stages = np.bincount(split.frame["target_stage"].to_numpy(int)[rows])
        np.testing.assert_allclose(stages, share * 50, atol=2)


def test_boxes_and_masks_are_balanced_by_label_and_by_whether_they_are_there():
    assert annotation_strata([BOX, NONE, None]).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]  # annotated, mass, node
    assert annotation_strata([CROWD, BOX]).tolist() == [[1, 0, 1], [1, 1, 1]]
    runs = [MaskFile(rle="1 1", size=(2, 2)), MaskFile(rle="", size=(2, 2)), None, MaskFile("a.png")]
    assert annotation_strata(runs).tolist() == [[1, 1], [1, 0], [0, 0], [1, 0]]
    n = 100
    boxes = [BOX if i % 10 == 0 else NONE if i % 2 else None for i in range(n)]
    table = only(make_table(ROOT, targets=[[0]] * n), {}, {"lesions": boxes}, lesions="boxes").check()
    split = assign_splits(table, seed=0)
    assert sum(boxes[row] is BOX for row in split.rows("test")) == 2
    assert sum(boxes[row] is NONE for row in split.rows("test")) == pytest.approx(10, abs=1)


def test_the_strata_of_a_source_are_joined_by_other_targets():
    table = make_table(ROOT, targets=[[0], [1]])
    assert table.split_strata().labels.tolist() == [[False], [True]]
    more = replace(table, frame=table.frame.assign(target_g=[0.0, 1.0]), other_targets={"g": "grade"}).check()
    assert more.split_strata().labels.astype(int).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_the_audit_counts_them():
    splits = ["train"] * 150 + ["val"] * 10 + ["test"] * 40
    audit = audit_table(numbers(splits=splits))
    months = audit.counts["train"]["targets"]["months"]
    assert (months["type"], months["known"], months["unknown"]) == ("number", 135, 15)
    assert (months["low"], months["high"]) == (-1.5, 220.5)
    assert months["low"] < months["quartiles"][0] < months["quartiles"][1] < months["high"]
    assert audit.counts["train"]["targets"]["stage"]["grades"] == {"0": 50, "1": 50, "2": 50}
    assert audit.counts["train"]["classes"] == {}
    assert "val has 9 image(s) with a known months (number): its scores are uncertain." in audit.warnings
    assert "val has grades of stage that no train image has: 3." in audit.warnings
    flat = only(make_table(ROOT, targets=[[0]] * 2, splits=["train"] * 2), {"a": [7.0, 7.0]}, a="number")
    assert "train has one value of a alone: 7." in audit_table(flat).warnings
    boxes = {"lesions": [BOX, NONE, None]}
    boxed = only(make_table(ROOT, targets=[[0]] * 3, splits=["train"] * 3), {}, boxes, lesions="boxes")
    counts = audit_table(boxed).counts["train"]["targets"]["lesions"]
    labels = {name: {"images": 1, "boxes": 1, "median_area": None} for name in ("mass", "node")}  # no image is read yet
    numbers_of = {"known": 2, "unknown": 1, "boxes": 2, "negative": 1, "ignored": 0}
    assert counts == {"type": "boxes", **numbers_of, "labels": labels}
    assert "targets" not in audit_table(make_table(ROOT, splits=["train"])).counts["train"]


def test_the_audit_of_boxes_by_hand():
    """Images of 20 x 20: a box of 2 x 2 is 1 % of one."""
    twice = Boxes.from_sides([("mass", 1, 1, 2, 2), ("mass", 1, 1, 2, 2), ("mass", 0, 0, 4, 4), ("node", 1, 1, 2, 2)])
    entries = [twice, NONE, CROWD, None, BOX, Boxes.from_sides([("rare", 0, 0, 1, 1)])]
    splits = ["train", "train", "train", "train", "val", "test"]
    table = only(make_table(ROOT, targets=[[0]] * 6, splits=splits), {}, {"boxes": entries}, boxes="boxes").check()
    early = audit_table(table)
    for sentence in (
        "train has no box of rare (boxes): it cannot be learned.",
        "val has no box of rare (boxes): its average precision is undefined there.",
        "test has no box of mass, node (boxes): its average precision is undefined there.",
        "1 boxes of boxes equal another one of their image and label, in 1: 0000.png.",
    ):
        assert sentence in early.warnings
    counts = audit_images(early, table, facts("abcdef")).counts["train"]["targets"]["boxes"]
    assert counts["labels"] == {
        "mass": {"images": 1, "boxes": 3, "median_area": 1},
        "node": {"images": 2, "boxes": 2, "median_area": pytest.approx(0.625)},  # of 1 % and 0.25 %
    }
    assert (counts["boxes"], counts["negative"], counts["ignored"]) == (5, 1, 1)
    unread = audit_images(early, table, facts("abcde.", bad={5: "is empty"})).counts
    assert "test" not in unread


def test_a_fit_without_boxes_in_train_stops():
    entries = [CROWD, NONE, BOX]
    table = only(
        make_table(ROOT, targets=[[0]] * 3, splits=["train", "train", "val"]), {}, {"boxes": entries}, boxes="boxes"
    )
    with pytest.raises(FinetuneError, match=r"not boxes \(boxes\). task=segment learns masks, task=detect boxes"):
        check_trainable(table)
    table.annotations["boxes"] = [NONE, None, BOX]
    with pytest.raises(FinetuneError, match=r"no train image has a box of boxes \(2 in val, 0 in test\)"):
        check_trainable(table)


def test_unsupported_targets_stop_a_fit_with_one_line():
    table = numbers(splits=["train"] * 200)
    with pytest.raises(
        FinetuneError, match=r"task=classify learns classes and findings, not months \(number\), stage \(grade\)"
    ) as error:
        check_trainable(table)
    assert "\n" not in str(error.value)
    with pytest.raises(FinetuneError, match=r"table toy has none, only months \(number\), stage \(grade\)"):
        to_model_classes(table, ["c0"], "multilabel")

    class Source:
        def table(self):
            return table

    with pytest.raises(FinetuneError, match=r"data.sources.a cannot be joined: only classes and findings can"):
        Joint({"a": Source(), "b": Source()}).table()


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path) -> SampleTable:
    """Three images of 40 x 80 with a bright rectangle, whose mask and box are targets beside a number; the last is
    not annotated."""
    for i in range(3):
        pixels = np.zeros((40, 80), np.uint8)
        pixels[10:30, 30 : 50 + i] = 255  # in the middle: fit=crop shows it
        save(pixels, tmp_path / f"{i:04d}.png")
        save(pixels // 255, tmp_path / f"masks/{i}.png")
    boxes = [Boxes.from_sides([("b", 30, 10, 20 + i, 20), ("a", 0, 0, 4, 4)]) for i in range(2)]
    masks = [MaskFile(f"masks/{i}.png") for i in range(2)]
    return only(
        make_table(tmp_path, targets=[[0]] * 3, splits=["train"] * 3),
        {"months": [1.5, NAN, 30]},
        {"lung": [*masks, None], "lesions": [*boxes, None]},
        months="number", lung="mask", lesions="boxes",
    ).check()  # fmt: skip


def test_masks_and_boxes_ride_along_in_batches(drawn):
    albumentations = pytest.importorskip("albumentations")
    from finetune.data.loading.augment import Augment

    p = Preprocessing(image_size=20, in_channels=1, mean=(0.0,), std=(1.0,), fit="crop", crop_fraction=0.625)
    images = ImageCache.build(drawn, p, "off")
    augment = Augment(20, {"flip": albumentations.HorizontalFlip(p=1)})
    data = ImageData(drawn, images, p, augment, batch_size=3)
    plain = next(iter(data.eval_loader("train")))
    np.testing.assert_array_equal(plain["target"], [[1.5], [NAN], [30]])
    assert plain["boxes_known"].tolist() == [True, True, False]
    assert plain["mask_known"].tolist() == [[True, True], [True, True], [False, False]]
    assert plain["mask"].dtype == torch.uint8
    assert plain["mask"].shape == (3, 20, 20)
    assert not plain["mask"][2].any()
    # 20 / 0.625 = 32 pixels are stored of 40, so 0.8; of 64 x 32 the middle 20 x 20 are shown: 22 and 6 go
    assert plain["boxes"][0].tolist() == [[30 * 0.8 - 22, 10 * 0.8 - 6, 50 * 0.8 - 22, 30 * 0.8 - 6]]
    assert plain["box_labels"][0].tolist() == [1]  # of a, b; the box of a was cut away
    assert plain["box_visible"][0].tolist() == [1]
    assert plain["boxes"][2].shape == (0, 4)
    moved = data.train_dataset.__getitems__([0, (1, 1)])
    assert torch.equal(moved["mask"][0], plain["mask"][0].flip(1))
    assert moved["boxes"][0][:, 0].item() == pytest.approx(20 - plain["boxes"][0][:, 2].item(), abs=1e-4)
    for batch in (plain, moved):
        for image, mask in zip(batch["image"][:2, 0], batch["mask"][:2], strict=True):
            bright = image > 0.5
            assert (bright & (mask == 1)).sum() / (bright | (mask == 1)).sum() > 0.9
    singles = ImageDataset.collate([data.eval_dataset[row] for row in range(3)])
    assert torch.equal(singles["mask"], plain["mask"])
    assert [boxes.shape for boxes in singles["boxes"]] == [boxes.shape for boxes in plain["boxes"]]


def test_boxes_hardly_seen_are_left_out_and_ignored_ones_stand_apart(drawn):
    """The middle of an image of 40 x 80 at its own size: x from 30 to 50, y from 10 to 30."""
    corners = [[20, 10, 32, 30], [20, 10, 32.6, 30], [30, 10, 50, 30], [0, 0, 31, 40], [0, 0, 5, 5]]
    crowd = Boxes(np.array(corners, float), ("b", "a", "b", "only", "a"), ignored=(False, False, True, True, True))
    table = replace(drawn, annotations={**drawn.annotations, "lesions": [crowd, BOX, None]})
    p = Preprocessing(image_size=20, in_channels=1, mean=(0.0,), std=(1.0,), fit="crop", crop_fraction=0.5)
    annotated = AnnotatedTargets(table, p, np.array([[40, 80]] * 3))
    assert annotated.labels == ["a", "b", "mass", "node"]  # `only` is never a target
    data = ImageData(table, ImageCache.build(table, p, "off"), p, None, batch_size=3)
    batch = next(iter(data.eval_loader("train")))
    # of the first box 2 of 12 columns are seen, too few
    assert MIN_VISIBLE == 0.2
    assert batch["box_labels"][0].tolist() == [0]
    assert batch["box_visible"][0].tolist() == pytest.approx([2.6 / 12.6])
    assert [len(boxes) for boxes in batch["ignored_boxes"]] == [2, 0, 0]  # the last of the three is out of sight
    assert all(boxes.shape[1:] == (4,) for boxes in batch["ignored_boxes"])
    single = ImageDataset.collate([data.eval_dataset[0]])
    assert torch.equal(single["ignored_boxes"][0], batch["ignored_boxes"][0])


def test_a_mask_of_another_size_and_boxes_outside_are_named(drawn):
    save(np.zeros((8, 8), np.uint8), drawn.root / "masks/1.png")
    p = Preprocessing(image_size=20)
    with pytest.raises(FinetuneError, match=r"0001.png: its mask masks/1.png has 8 x 8 pixels, the image 40 x 80"):
        ImageCache.build(drawn, p, "off")
    images = ImageCache.build(drawn, p, "off", on_bad="skip")
    assert list(images.bad) == [1]
    assert ImageData(drawn, images, p, None, batch_size=3).rows("train").tolist() == [0, 2]
    beyond = [Boxes.from_sides([("a", 70, 0, 15, 4)]), *drawn.annotations["lesions"][1:]]
    table = replace(drawn, annotations={**drawn.annotations, "lesions": beyond})
    warnings = audit_images(audit_table(table), table, images).warnings
    assert "1 image(s) have boxes of lesions that reach out of them: 0000.png." in warnings
