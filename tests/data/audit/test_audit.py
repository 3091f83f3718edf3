import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from finetune.data.audit.audit import audit_images, audit_table, check_trainable
from finetune.data.audit.near_duplicates import Pair
from finetune.errors import FinetuneError
from tests.data.making import make_table

ROOT = Path("/data")


@dataclass
class Facts:
    """What the audit wants of an image cache."""

    digests: list[str]
    extremes: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    masks: None = None

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 255, (20, 20)).astype(np.uint8)

    @property
    def sizes(self) -> np.ndarray:
        return np.full((len(self), 2), 20)


def facts(digests: str, bad: dict[int, str] | None = None, extremes: list[list[int]] | None = None) -> Facts:
    """One letter per image; a dot is a bad one."""
    bad = bad or {}
    names = ["" if letter == "." else letter for letter in digests]
    return Facts(names, np.array(extremes or [[0, 200]] * len(names), np.uint8), bad)


def test_counts_by_hand():
    table = make_table(
        ROOT, ["p", "p", "q", "r"], [[1, 0], [0.6, np.nan], [0, 1], [np.nan, 0]], ["train", "train", "val", "test"]
    )
    audit = audit_table(table)
    assert audit.counts["train"] == {
        "images": 2,
        "patients": 1,
        "classes": {
            "c0": {"positive": 2, "negative": 0, "unknown": 0},
            "c1": {"positive": 0, "negative": 1, "unknown": 1},
        },
    }
    assert audit.counts["test"]["classes"]["c0"] == {"positive": 0, "negative": 0, "unknown": 1}
    assert audit.leaks == []
    assert "train has no positive image for c1: it cannot be learned." in audit.warnings
    assert "train has no negative image for c0: it cannot be learned." in audit.warnings
    assert "val has no positive image for c0: its AUROC is undefined there." in audit.warnings
    assert "val has fewer than 10 positive images for c1 (1): their scores are uncertain." in audit.warnings
    assert json.loads(json.dumps(audit.to_dict())) == audit.to_dict()


def test_a_sound_table_has_nothing_to_say():
    table = make_table(ROOT, None, None, (["train"] * 20 + ["val"] * 20 + ["test"] * 20))
    audit = audit_table(table)
    assert (audit.leaks, audit.warnings) == ([], [])
    assert audit.counts["val"]["patients"] is None
    audit.stop_on_leak()


def test_a_patient_in_two_splits_stops_the_run():
    splits = ["train", "test", "train", "val", "test", "val"]
    audit = audit_table(make_table(ROOT, ["p", "p", "q", "q", "p", "r"], None, splits))
    assert [(leak.kind, leak.splits, leak.count, leak.examples) for leak in audit.leaks] == [
        ("patient", ["train", "val"], 1, ["q"]),
        ("patient", ["train", "test"], 1, ["p"]),
    ]
    with pytest.raises(FinetuneError, match=r"(?s)patient\(s\) are in both train and test: p.*data.audit.on_leak=warn"):
        audit.stop_on_leak("stop")
    audit.stop_on_leak("warn")
    with pytest.raises(FinetuneError, match=r"data.audit.on_leak=ignore is not known"):
        audit.stop_on_leak("ignore")


def test_examples_of_a_leak_are_limited():
    n = 100
    table = make_table(ROOT, [f"p{i}" for i in range(n)] * 2, None, ["train"] * n + ["test"] * n)
    (leak,) = audit_table(table).leaks
    assert (leak.count, len(leak.examples)) == (100, 20)


def test_the_same_image_in_two_splits_is_a_leak():
    table = make_table(ROOT, None, [[1], [1], [0], [0], [1]], ["train", "train", "test", "val", "val"])
    early = audit_table(table)
    audit = audit_images(early, table, facts("abacb"))
    assert [(leak.kind, leak.splits, leak.count) for leak in audit.leaks] == [
        ("image", ["train", "val"], 1),
        ("image", ["train", "test"], 1),
    ]
    assert audit.leaks[1].examples == [["0000.png", "0002.png"]]
    assert "1 image(s) appear several times with contradicting labels: 0000.png." in audit.warnings
    assert early.leaks == []  # the first audit stays what it was


def test_copies_within_a_split_and_agreeing_labels():
    table = make_table(ROOT, None, [[1], [1], [np.nan], [0]], ["train"] * 4)
    audit = audit_images(audit_table(table), table, facts("aaab"))
    assert audit.leaks == []
    assert "2 image(s) are copies of another in the same split, equal to the last pixel." in audit.warnings
    assert not any("contradicting" in sentence for sentence in audit.warnings)


def test_bad_images_are_listed_and_not_counted():
    table = make_table(ROOT, None, None, ["train", "train", "test"])
    audit = audit_images(audit_table(table), table, facts("a.b", bad={1: "is empty (0 bytes)"}))
    assert audit.bad_images == [{"path": "0001.png", "reason": "is empty (0 bytes)"}]
    assert audit.counts["train"]["images"] == 1
    assert "1 of 3 images cannot be read and are left out." in audit.warnings


def test_single_colours_are_no_copies_and_dark_sets_are_noticed():
    table = make_table(ROOT, None, None, ["train", "test", "train", "train"])
    blank = audit_images(audit_table(table), table, facts("aabc", extremes=[[0, 0], [0, 0], [0, 255], [3, 90]]))
    assert blank.leaks == []
    assert "2 image(s) are of a single colour: 0000.png, 0001.png." in blank.warnings
    dark = audit_images(audit_table(table), table, facts("abcd", extremes=[[0, 15], [0, 12], [0, 15], [3, 90]]))
    assert any("3 images are nearly black" in sentence and "sBIT" in sentence for sentence in dark.warnings)


def test_certain_near_copies_are_leaks_and_possible_ones_are_warnings():
    table = make_table(ROOT, list("pqrst"), None, ["train", "test", "train", "train", "test"])
    pairs = [
        Pair(0, 2, 0.99, 0.98, "certain"),
        Pair(0, 4, 0.95, 0.7, "possible"),
        Pair(2, 3, 0.95, 0.7, "possible"),
        Pair(1, 3, 0.97, 0.96, "certain"),
    ]
    audit = audit_images(audit_table(table), table, facts("abcde"), pairs)
    assert [(leak.kind, leak.splits, leak.count) for leak in audit.leaks] == [("near", ["train", "test"], 1)]
    assert audit.leaks[0].examples == [["0001.png", "0003.png", 0.97]]
    assert audit.near[0] == {
        "paths": ["0001.png", "0003.png"],
        "splits": ["test", "train"],
        "alike": 0.97,
        "detail": 0.96,
        "certainty": "certain",
    }
    assert [item["certainty"] for item in audit.near] == ["certain", "possible", "certain", "possible"]
    assert audit.to_dict()["near"] == audit.near
    assert "1 pair(s) of near copies are in the same split: 0000.png ~ 0002.png." in audit.warnings
    text = "2 pair(s) of near copies are filed under different patients: are the patient ids right?"
    assert text in audit.warnings  # of the certain ones
    (sentence,) = [text for text in audit.warnings if "may be near copies" in text]
    assert "2 pair(s) of images may be near copies, 1 of them in two splits: 0000.png ~ 0004.png." in sentence
    assert "near_copies.png shows them, audit.json lists them" in sentence


def test_possible_near_copies_alone_neither_stop_nor_accuse():
    table = make_table(ROOT, ["p", "q"], None, ["train", "test"])
    audit = audit_images(audit_table(table), table, facts("ab"), [Pair(0, 1, 0.95, 0.7, "possible")])
    audit.stop_on_leak("stop")
    assert not any("patient ids" in sentence for sentence in audit.warnings)


def test_the_error_of_a_leak_says_where_to_look_and_what_to_type():
    table = make_table(ROOT, None, None, ["train", "test"])
    audit = audit_images(audit_table(table), table, facts("ab"), [Pair(0, 1, 0.97, 0.96, "certain")])
    with pytest.raises(FinetuneError) as caught:
        audit.stop_on_leak("stop", Path("outputs/toy"))
    message = str(caught.value)
    assert "1 pair(s) of near copies are divided between train and test: 0000.png ~ 0001.png." in message
    assert "outputs/toy/near_copies.png" in message
    assert "outputs/toy/audit.json" in message
    assert "data.audit.near=false continues without the search for near copies; patients and equal images" in message
    assert "data.audit.on_leak=warn continues despite all leaks." in message
    patients = audit_table(make_table(ROOT, ["p", "p"], None, ["train", "test"]))
    with pytest.raises(FinetuneError) as caught:
        patients.stop_on_leak("stop", Path("outputs/toy"))
    assert "near" not in str(caught.value)  # nothing to turn off
    assert "outputs/toy/audit.json" in str(caught.value)


def test_untrainable_tables():
    with pytest.raises(FinetuneError, match="no train images"):
        check_trainable(make_table(ROOT, None, None, ["test", "test"]))
    with pytest.raises(FinetuneError, match="every label of the 2 train images is unknown"):
        check_trainable(make_table(ROOT, None, [[np.nan], [np.nan]], ["train", "train"]))
    with pytest.raises(FinetuneError, match="no train image is positive for any of c0"):
        check_trainable(make_table(ROOT, None, [[0], [0], [1]], ["train", "train", "test"]))
    one_hot = [[1, 0], [1, 0], [0, 1]]
    with pytest.raises(FinetuneError, match="class c1 is in val but never in train"):
        check_trainable(make_table(ROOT, None, one_hot, ["train", "train", "val"], kind="multiclass"))
    with pytest.raises(FinetuneError, match="all train images are of one class"):
        check_trainable(make_table(ROOT, None, one_hot[:2], ["train", "train"], kind="multiclass"))
    check_trainable(make_table(ROOT, None, [[1, 0], [0, 0]], ["train", "train"]))  # c1 is only warned of
