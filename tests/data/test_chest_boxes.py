"""Boxes as the target of NIH ChestX-ray14, RSNA and VinDr-CXR: which images are known, and which are negatives."""

import numpy as np
import pytest
from PIL import Image

from finetune.data.audit.audit import audit_table, check_trainable
from finetune.data.phantom.dataset import make_phantoms
from finetune.data.sources.chestxray import ChestXray
from finetune.data.sources.rsna import Rsna
from finetune.data.sources.vindr import VinDr
from finetune.data.sources.vindr_boxes import Drawn, merged
from finetune.data.splits import assign_splits
from finetune.errors import FinetuneError
from tests.data.making import save, save_dicom
from tests.data.test_chest_sources import VINDR_DRAWN, VINDR_TEST, make_rsna, make_vindr, write
from tests.data.test_chestxray_boxes import boxed

TEST_HEADER = "image_id,class_name,x_min,y_min,x_max,y_max"


def texts(table) -> list[str | None]:
    return [None if entry is None else entry.content() for entry in table.annotations["boxes"]]


# -- NIH --------------------------------------------------------------------------------------------------------------

NIH = [
    "00000001_000.png,Cardiomegaly,100,200,300,400,,,",  # of Cardiomegaly|Emphysema: the latter is never boxed
    "00000002_001.png,Mass,1,1,10,10,,,",  # the label is Hernia
]


def test_nih_images_are_known_where_every_finding_has_its_box(tmp_path):
    root = boxed(tmp_path, *NIH)
    table = ChestXray(root, target="boxes").table()
    # a box for each finding that has some; No Finding; a box of what the label lacks; Pneumonia without a box
    assert texts(table) == ["Cardiomegaly 100 200 300 400", "", "Mass 0.5 0.25 5 2.5", None]
    assert (table.kind, table.classes, table.other_targets) == ("none", [], {"boxes": "boxes"})
    assert table.metadata == ["age", "sex", "view", "follow_up"]
    assert "Of 1 images the boxes are not known: they teach nothing and are not scored." in table.notes
    assert (
        len(table.split_strata().labels[0]) == 15 + 1 + 2
    )  # its 15 labels as before, known, and a column for each label
    listing = root / "Data_Entry_2017_v2020.csv"
    listing.write_text(listing.read_text().replace("Cardiomegaly|Emphysema", "Cardiomegaly|Effusion"))
    partial = ChestXray(root, target="boxes").table()
    assert texts(partial)[0] is None
    assert any(note.startswith("1 images have boxes of only some of their findings") for note in partial.notes)
    assert texts(ChestXray(root, ["Cardiomegaly"], target="boxes").table())[0] == "Cardiomegaly 100 200 300 400"


def test_nih_faults(tmp_path):
    root = boxed(tmp_path, "00000001_000.png,Cardiomegaly,900,200,300,400,,,", NIH[1])
    with pytest.raises(FinetuneError, match=r"1 box\(es\) that reach out of their image, the first: .*00000001_000"):
        ChestXray(root, target="boxes").table()
    assert texts(ChestXray(root, target="boxes", on_bad="skip").table())[0] is None
    (root / "BBox_List_2017.csv").unlink()
    with pytest.raises(FinetuneError, match=r"data.target=boxes needs BBox_List_2017.csv in data.root=.*nihcc"):
        ChestXray(root, target="boxes").table()
    with pytest.raises(FinetuneError, match=r"data.target=mask is not known. Choose from class, boxes"):
        ChestXray(root, target="mask")


def test_every_image_of_the_synthetic_set_is_known(tmp_path):
    root = make_phantoms(tmp_path / "phantom", n_images=40, size=64, seed=3, workers=1)
    table = ChestXray(root, target="boxes").table()
    entries, classes = table.annotations["boxes"], ChestXray(root).table()
    assert all(entry is not None and entry.complete for entry in entries)
    shown = {name: classes.frame[f"target_{name}"].to_numpy() == 1 for name in classes.classes}
    for row, entry in enumerate(entries):
        assert set(entry.labels) == {name for name, rows in shown.items() if rows[row]}


def test_the_real_boxes_as_targets(shared_data):
    table = assign_splits(ChestXray(shared_data / "nih", target="boxes").table(), seed=0)
    entries = table.annotations["boxes"]
    boxes, none = [e for e in entries if e], [e for e in entries if e is not None and not len(e)]
    classes = ChestXray(shared_data / "nih", ["No Finding"]).table()
    assert 0 < len(boxes) <= 12
    assert len(none) == (classes.frame["target_No Finding"] == 1).sum()
    assert len(ChestXray(shared_data / "nih", ["Pneumonia"], target="boxes").table()) == 350
    assert all((entry.corners <= 512).all() and entry.complete for entry in boxes)
    assert audit_table(table).counts["train"]["targets"]["boxes"]["boxes"] > 0


# -- RSNA -------------------------------------------------------------------------------------------------------------


def test_rsna_every_image_is_known_and_boxes_shrink_with_it(tmp_path):
    make_rsna(tmp_path, suffix=".png")
    for name, side in (("0004cfab", 64), ("00436515", 1024), ("00704310", 512)):
        save(np.zeros((side, side), np.uint8), tmp_path / f"stage_2_train_images/{name}.png")
    table = Rsna(tmp_path, target="boxes").table()
    assert texts(table) == [
        "",
        "Pneumonia 264 152 213 379; Pneumonia 562 152 256 453",
        "Pneumonia 161.5 288.5 80 52",
    ]
    assert "1 images with boxes are not of the published 1024 px: boxes are scaled." in table.notes
    assert "3 boxes of 1 label(s) in 2 images; 1 images have none and are negatives." in table.notes
    assert table.classes == []


def test_rsna_faults(tmp_path):
    good = ["patientId,x,y,width,height,Target", "a,,,,,0", "b,1,2,3,4,1"]
    for line, message in (
        ("c,,,,,1", r"1 images whose Target and boxes differ, the first: .*c.dcm: 0 box\(es\)"),
        ("c,1,2,3,4,0", r"images whose Target and boxes differ, the first: .*c.dcm: 1 box\(es\)"),
        ("c,1000,2,300,4,1", r"1 box\(es\) that reach out of their image, the first: .*c.dcm"),
        ("c,1,2,0,4,1", r"1 box\(es\) without an area"),
    ):
        make_rsna(tmp_path, [*good, line])
        save_dicom(tmp_path / "stage_2_train_images/c.dcm", np.zeros((1024, 1024), np.uint8))
        with pytest.raises(FinetuneError, match=message):
            Rsna(tmp_path, target="boxes").table()
        assert texts(Rsna(tmp_path, target="boxes", on_bad="skip").table()) == ["", "Pneumonia 1 2 3 4", None]
        assert len(Rsna(tmp_path).table()) == 3  # as ever, where boxes are no target


# -- VinDr ------------------------------------------------------------------------------------------------------------


def test_vindr_boxes_of_several_readers_are_merged(tmp_path):
    make_vindr(tmp_path)
    write(tmp_path / "annotations/annotations_train.csv", *VINDR_DRAWN)
    for name in ("000434271f", "00053190460d"):
        save_dicom(tmp_path / f"train/{name}.dicom", np.zeros((60, 50), np.uint8))
    source = VinDr(tmp_path, target="boxes")
    table = source.table()
    # 10.5 20 30 50 and 12 20 32 50 share 540 of 645: their mean. Of test no boxes are known.
    assert texts(table) == ["Effusion 11.25 20 19.75 30", "", None]
    assert any(note.startswith("2 boxes of several readers are 1:") for note in table.notes)
    assert table.frame["split"].tolist() == ["train", "train", "test"]
    write(
        tmp_path / "annotations/annotations_test.csv",
        TEST_HEADER,
        "002a34c58c,No finding,,,,",
    )
    assert texts(source.table())[2] == ""
    bad = [*VINDR_DRAWN[:3], "000434271f,R8,Pleural effusion,9,2,3,4"]
    write(tmp_path / "annotations/annotations_train.csv", *bad)
    with pytest.raises(FinetuneError, match=r"annotations_train.csv, line 4: x_min.*data.on_bad=skip leaves such"):
        source.table()
    entry = VinDr(tmp_path, target="boxes", on_bad="skip").table().annotations["boxes"][0]
    assert entry is not None
    assert (len(entry), entry.complete) == (1, False)


def test_vindr_without_boxes_or_in_smaller_images(tmp_path):
    make_vindr(tmp_path, suffix=".png", test=[*VINDR_TEST])
    with pytest.raises(FinetuneError, match=r"data.target=boxes needs annotations/annotations_train.csv"):
        VinDr(tmp_path, target="boxes").table()
    write(tmp_path / "annotations/annotations_train.csv", *VINDR_DRAWN)
    for file in tmp_path.rglob("*.png"):
        Image.new("L", (40, 40)).save(file)
    with pytest.raises(FinetuneError, match=r"pixels of the DICOM, and train/000434271f.png is a smaller image, of 40"):
        VinDr(tmp_path, target="boxes").table()


def test_merging_by_hand():
    def box(reader, *corners, finding="a"):
        return Drawn("i", finding, reader, corners, "")

    same = [box("R1", 0.0, 0.0, 10.0, 10.0), box("R2", 0.0, 2.0, 10.0, 12.0), box("R3", 0.0, 1.0, 10.0, 11.0)]
    assert [b.corners for b in merged(same)] == [(0, 1, 10, 11)]  # 80 of 120, then all but one row
    for second in (
        box("R2", 0.0, 5.0, 10.0, 15.0),  # 50 of 150
        box("R1", 0.0, 1.0, 10.0, 11.0),  # the same reader saw two
        box("R2", 0.0, 1.0, 10.0, 11.0, finding="b"),
        box("", 0.0, 0.0, 10.0, 10.0),
    ):
        assert len(merged([same[0], second])) == 2
    assert len(merged([box("", 0.0, 0.0, 9.0, 9.0)] * 2)) == 2  # a table without readers


def test_official_splits_without_boxes_in_train_stop_a_fit(tmp_path):
    make_vindr(tmp_path, test=[VINDR_TEST[0], "002a34c58c,1,0,0,0"])
    save_dicom(tmp_path / "test/002a34c58c.dicom", np.zeros((60, 50), np.uint8))
    write(
        tmp_path / "annotations/annotations_test.csv",
        TEST_HEADER,
        "002a34c58c,Nodule/Mass,0,0,5,7",
    )
    table = VinDr(tmp_path, target="boxes").table()
    with pytest.raises(FinetuneError, match=r"no train image has a box of boxes \(0 in val, 1 in test\)"):
        check_trainable(table)
