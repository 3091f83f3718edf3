"""What the training of a detector minimises and how it is validated: unknown and ignored boxes, seeds, fixed rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from finetune.data.annotations import Boxes
from finetune.data.table import SampleTable
from finetune.network import NetworkSpec
from finetune.tasks.detection.objective import AP50, DetectObjective, rows_of, same_numbers
from finetune.tasks.detection.truths import true_arrays, with_labels
from finetune.training.objective import LOSS

HEADS = {
    "faster_rcnn": ({"extra": "pool"}, {"hidden": 16, "rpn_top_n_train": 50, "rpn_top_n_test": 30}),
    "retinanet": ({"extra": "p6p7"}, {}),
}
both = pytest.mark.parametrize("name", HEADS)
BOX = [4.0, 6.0, 20.0, 24.0]


def network(name: str):
    torch.manual_seed(0)
    neck, head = HEADS[name]
    spec = NetworkSpec("resnet20_cifar", 2, 1, name, {}, head, "pyramid", {"channels": 8, "finest": 2, **neck})
    return spec.build().eval()


def batch_of(boxes: list, known=None, ignored=None, side: int = 32) -> dict:
    n = len(boxes)
    images = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    batch = {"image": images, "index": torch.arange(n), "boxes_known": torch.tensor(known or [True] * n)}
    batch["boxes"] = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes]
    batch["box_labels"] = [torch.arange(len(b)) % 2 for b in boxes]
    if ignored is not None:
        batch["ignored_boxes"] = [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in ignored]
    return batch


def table_of(boxes: list[Boxes | None], splits: list[str]) -> SampleTable:
    names = [f"{i}.png" for i in range(len(boxes))]
    frame = pd.DataFrame({"path": names, "patient": names, "split": splits})
    return SampleTable(
        frame, [], "none", Path(), "t", annotations={"where": boxes}, other_targets={"where": "boxes"}
    ).check()


def test_rows_are_of_one_length():
    rows = rows_of([torch.ones(2, 4), torch.zeros(0, 4), torch.ones(5, 4)], 3)
    assert rows.shape == (3, 3, 4)
    assert rows[0].isnan().any(dim=1).tolist() == [False, False, True]
    assert rows[1].isnan().all()
    assert rows_of([torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)], 3, -1).tolist() == [[1, 0, -1], [-1] * 3]


def test_seeded_numbers_leave_the_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for seed in ([1, 2], [1, 2], [2, 1]):
        with same_numbers(seed, torch.device("cpu")):
            drawn.append(torch.rand(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@both
def test_steps_count_known_images_and_validations_repeat_themselves(name):
    net, objective = network(name), DetectObjective((1, 1), 2)
    torch.manual_seed(3)
    total, count = objective.step(net, batch_of([[BOX], [BOX], []], known=[True, False, True]))
    assert count == 2
    total.backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        batch = batch_of([[BOX], []])
        first, again = objective.predict(net, batch), objective.predict(net, batch)
    assert set(first) == set(objective.row_names)
    for key, value in first.items():
        assert torch.equal(torch.nan_to_num(value.float()), torch.nan_to_num(again[key].float())), key
        assert len(value) == 2
    assert first["boxes"].shape == (2, 100, 4)
    assert first["loss"][0] == first["loss"][1]


def rows(**changed) -> dict[str, np.ndarray]:
    """Two images: in one a box that is found, and a second box of class 1 that is wrong; in the other nothing."""
    found = np.full((2, 3, 4), np.nan)
    found[0, :2] = [BOX, [0, 0, 5, 5]]
    scores = np.full((2, 3), np.nan)
    scores[0, :2] = [0.9, 0.8]
    labels = np.array([[0, 1, -1], [-1, -1, -1]])
    of_images = {"known": np.array([1, 1], np.uint8), "loss": np.array([1.0, 3.0])}
    true = {"true_boxes": np.array([[BOX], [[np.nan] * 4]]), "true_labels": np.array([[0], [-1]])}
    ignored = {"ignored": np.full((2, 1, 4), np.nan)}
    return {**of_images, "boxes": found, "scores": scores, "labels": labels, **true, **ignored, **changed}


def test_scores_are_of_known_images_alone():
    objective = DetectObjective((1, 1), 2)
    assert objective.score(rows()) == {LOSS: 2.0, AP50: 1.0}
    unknown = objective.score(rows(known=np.array([0, 1], np.uint8)))
    assert unknown[LOSS] == 3.0
    assert np.isnan(unknown[AP50])
    nothing = objective.score(rows(known=np.zeros(2, np.uint8)))
    assert np.isnan([nothing[LOSS], nothing[AP50]]).all()
    with pytest.raises(FloatingPointError):
        objective.score(rows(loss=np.array([np.nan, 1.0])))
    assert objective.score(rows(loss=np.array([np.nan, 1.0]), known=np.array([0, 1], np.uint8)))[LOSS] == 1.0


def test_a_detection_in_an_ignored_place_is_not_wrong():
    """A false positive of the higher score halves the precision, unless it lies in a place to ignore."""
    objective = DetectObjective((1, 1), 2)
    scores, labels = rows()["scores"], rows()["labels"]
    scores[0, 1], labels[0, 1] = 0.95, 0
    assert objective.score(rows(scores=scores, labels=labels))[AP50] == pytest.approx(0.5)
    ignored = rows()["ignored"]
    ignored[0, 0] = [0, 0, 6, 6]
    assert objective.score(rows(scores=scores, labels=labels, ignored=ignored))[AP50] == 1.0


@both
def test_what_is_ignored_is_no_background(name):
    """With the whole image ignored, nothing without a box adds to RetinaNet's loss, and Faster R-CNN samples one anchor
    and one proposal of it."""
    net, whole = network(name), [-200.0, -200.0, 232.0, 232.0]  # anchors reach out of the image
    maps = net.run(batch_of([[]])["image"], stop="head")
    none, box = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]

    def losses(ignored):
        torch.manual_seed(0)
        places = None if ignored is None else [torch.tensor(ignored).reshape(-1, 4)]
        return net.head.losses(maps, none, box, side=32, ignored=places)

    plain, nowhere, everywhere = losses(None), losses([]), losses([whole])
    for key, value in plain.items():
        assert value == nowhere[key], key
        assert torch.isfinite(everywhere[key]), key
    if name == "retinanet":
        assert everywhere["classification"] == 0
        assert plain["classification"] > 0
    objective = DetectObjective((1, 1), 2)
    total, count = objective.step(net, batch_of([[BOX], []], ignored=[[], [whole]]))
    assert torch.isfinite(total)
    assert count == 2


def test_half_of_an_anchor_decides_whether_it_is_ignored():
    from finetune.heads.detection_parts import is_ignored

    boxes = torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4], [3.0, 0, 7, 4], [20.0, 20, 24, 24]])
    assert is_ignored(boxes, {"ignored": torch.tensor([[0.0, 0, 4, 4]])}).tolist() == [True, True, False, False]
    assert not is_ignored(boxes, {}).any()


def test_the_monitor_is_the_loss_where_val_has_no_box():
    box = Boxes(np.array([BOX]), ("a",))
    crowd = Boxes(np.array([BOX, BOX]), ("a", "b"), ignored=(False, True))
    none = Boxes(np.zeros((0, 4)), ())
    objective = DetectObjective.of_table(table_of([box, none], ["train", "val"]), seed=0)
    assert (objective.monitor, objective.higher_is_better) == (LOSS, False)
    assert "best epoch is by val/loss" in objective.notes[0]
    objective = DetectObjective.of_table(table_of([box, crowd, None], ["train", "val", "val"]), seed=0)
    assert (objective.monitor, objective.most, objective.ignored_most) == (AP50, 1, 1)
    assert objective.notes == []
    other = Boxes(np.array([BOX]), ("c",))
    objective = DetectObjective.of_table(table_of([box, other], ["train", "val"]), seed=0)
    assert objective.notes == ["No train image has a box of c: it cannot be learned."]


def test_labels_of_other_data_are_compared_by_name():
    boxes = Boxes(np.array([BOX, [1, 1, 2, 2], BOX]), ("a", "b", "a"), ignored=(False, False, True))
    table = with_labels(table_of([boxes, None], ["val", "val"]), ["a", "z"], "model=M")
    entry = table.annotations["where"][0]
    assert (entry.labels, entry.ignored) == (("a", "a"), (False, True))
    assert table.notes == ["model=M does not detect b: boxes of these labels are left out."]
    corners, labels, ignored = true_arrays(boxes, ["z", "a"])
    assert corners.tolist() == [BOX, BOX]
    assert (labels.tolist(), ignored.tolist()) == ([1, 1], [False, True])
