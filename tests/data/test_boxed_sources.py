"""Boxes in the layouts of COCO, Pascal VOC, YOLO and CSV: the same boxes from each, and every fault named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.annotations import Boxes
from finetune.data.sources.boxed import BoxList, Faults, patients_from, split_of
from finetune.data.sources.coco import Coco
from finetune.data.sources.csv_boxes import form_of
from finetune.data.sources.csv_table import CsvTable
from finetune.data.sources.voc import Voc
from finetune.data.sources.yolo import Yolo
from finetune.data.splits import assign_splits
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from tests.data.boxing import DRAWN, HEIGHT, WIDTH, coco_json, images, make_coco, make_csv, make_voc, make_yolo
from tests.data.making import save_dicom


def csv(root: Path, **options) -> CsvTable:
    return CsvTable(root / "boxes.csv", target="boxes", **options)


LAYOUTS = [(make_coco, Coco), (make_voc, Voc), (make_yolo, Yolo), (make_csv, csv)]


def boxes_of(table: SampleTable) -> dict[str, list | None]:
    """Stem of the image -> its boxes as sides, rounded."""
    return {
        Path(path).stem: None
        if entry is None
        else [(label, *(round(side, 4) for side in sides)) for label, *sides in entry.sides()]
        for path, entry in zip(table.paths, table.annotations["boxes"], strict=True)
    }


@pytest.mark.parametrize(("make", "source"), LAYOUTS, ids=["coco", "voc", "yolo", "csv"])
def test_every_layout_gives_the_same_boxes(tmp_path, make, source):
    table = source(make(tmp_path)).table()
    assert boxes_of(table) == DRAWN
    assert (table.kind, table.classes, table.other_targets) == ("none", [], {"boxes": "boxes"})
    assert table.target_columns == []
    assert table.frame["split"].isna().all()
    assert not table.has_patients
    assert "3 boxes of 2 label(s) in 2 images; 1 images have none and are negatives." in table.notes
    assert all(entry.complete for entry in table.annotations["boxes"])


sides = st.tuples(
    st.sampled_from(["mass", "node"]), st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1),
    st.integers(1, WIDTH), st.integers(1, HEIGHT),
).map(lambda box: (*box[:3], min(box[3], WIDTH - box[1]), min(box[4], HEIGHT - box[2])))  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(st.lists(sides, max_size=3), min_size=1, max_size=3).filter(any))
def test_what_is_written_is_read(tmp_path_factory, drawn):
    named = {f"i{number}": boxes for number, boxes in enumerate(drawn)}
    for make, source in LAYOUTS:
        assert boxes_of(source(make(tmp_path_factory.mktemp("set"), named)).table()) == named


@settings(max_examples=50, deadline=None)
@given(boxes=st.lists(st.tuples(*[st.floats(-60, 60)] * 4), max_size=6))
def test_boxes_that_remain_lie_in_their_image_and_have_an_area(boxes):
    listed, faults = BoxList(), Faults("skip")
    for number, corners in enumerate(boxes):
        listed.add(0, "a", corners, f"line {number}")
    (entry,) = listed.per_image(np.array([[HEIGHT, WIDTH]]), faults)
    left_out = sum(map(len, faults.by_kind.values()))
    assert left_out == len(boxes) - (0 if entry is None else len(entry))
    assert (entry is None) == (0 < len(boxes) == left_out)
    if entry is not None:
        assert entry.complete == (left_out == 0)
        assert (entry.corners >= 0).all()
        assert (entry.corners <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
        assert (entry.corners[:, 2:] > entry.corners[:, :2]).all()


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((5, 5, 50, 20), "that reach out of their image"),
        ((-2, 5, 20, 20), "that reach out of their image"),
        ((5, 5, 5, 20), "without an area"),
        ((9, 5, 5, 20), "with the right or bottom before the left or top"),
        ((5, np.nan, 9, 20), "without four finite numbers"),
        ((5, 5, np.inf, 20), "without four finite numbers"),
        ((40.2, 5, 40.8, 20), "without an area inside their image"),
    ],
)
def test_a_box_that_makes_no_sense_is_one_error_or_counted(corners, kind):
    size = np.array([[HEIGHT, WIDTH]])
    for on_bad in ("stop", "skip"):
        listed, faults = BoxList(), Faults(on_bad)
        listed.add(0, "a", (1, 1, 4, 4), "t.csv, line 2")
        listed.add(0, "a", corners, "t.csv, line 3")
        (entry,) = listed.per_image(size, faults)
        assert entry is not None
        assert (len(entry), entry.complete) == (1, False)
        if on_bad == "stop":
            with pytest.raises(FinetuneError, match=rf"1 box\(es\) {kind}, the first: t.csv, line 3: \[.*on_bad=skip"):
                faults.settle()
        else:
            (said,) = faults.settle()
            assert said.startswith(f"Left out (data.on_bad=skip): 1 box(es) {kind}, the first: t.csv, line 3")


def test_up_to_a_pixel_over_the_border_is_cut():
    listed, faults = BoxList(), Faults()
    listed.add(0, "a", (-1, 3, 41, 30.5), "here")
    (entry,) = listed.per_image(np.array([[HEIGHT, WIDTH]]), faults)
    assert entry is not None
    assert entry.corners.tolist() == [[0, 3, 40, 30]]
    assert entry.complete
    assert faults.settle() == []
    with pytest.raises(FinetuneError, match=r"data.on_bad=maybe is not known"):
        Faults("maybe")


# -- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_files_named_as_splits_are_the_splits(tmp_path):
    content = coco_json()
    for split, number in (("train2017", 0), ("val2017", 1)):
        images(tmp_path, split, ["abc"[number]])
        part = {
            **content,
            "images": [content["images"][number]],
            "annotations": [entry for entry in content["annotations"] if entry["image_id"] == number],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(part))
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    table = Coco(tmp_path).table()
    assert table.paths == ["train2017/a.png", "val2017/b.png"]
    assert table.frame["split"].tolist() == ["train", "val"]
    assert "instances_val2017.json: 2 categories have no box: mass, node." in table.notes
    for name in ("other.json", "train.json"):
        (tmp_path / "annotations" / name).write_text(json.dumps(content))
    for name in ("train2017", "val2017"):
        (tmp_path / f"annotations/instances_{name}.json").unlink()
    (tmp_path / "annotations/captions_val2017.json").unlink()
    with pytest.raises(FinetuneError, match=r"2 files of annotations, and other.json does not say which split"):
        Coco(tmp_path).table()
    chosen = Coco(annotations=tmp_path / "annotations/train.json")
    with pytest.raises(FinetuneError, match=r"none of the 3 images of train.json is there"):
        chosen.table()
    images(tmp_path, "train", "ab")
    table = chosen.table()
    assert (table.name, table.paths) == ("train", ["train/a.png", "train/b.png"])
    assert table.frame["split"].isna().all()  # one file is split here, whatever its name
    assert any(note.startswith("1 of 3 listed images are absent") for note in table.notes)


def test_coco_beside_the_images_of_each_split(tmp_path):
    for split in ("train", "valid"):
        images(tmp_path, split, DRAWN)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_json()))
    table = Coco(tmp_path).table()
    assert table.frame["split"].tolist() == ["train"] * 3 + ["val"] * 3
    assert table.paths[3] == "valid/a.png"


def test_coco_crowds_are_ignored_and_patients_are_read(tmp_path):
    content = coco_json()
    content["annotations"][1]["iscrowd"] = 1
    for number, entry in enumerate(content["images"]):
        entry["patient_id"] = [4, 4, None][number]
        del entry["width"]  # then the file's header says it
    table = Coco(make_coco(tmp_path, content=content)).table()
    entry = table.annotations["boxes"][0]
    assert isinstance(entry, Boxes)
    assert (entry.labels, entry.ignored, entry.target_labels) == (("node", "mass"), (False, True), ["node"])
    assert entry.content().endswith("mass 20 10 20 20 ignored")
    assert table.frame["patient"].tolist() == ["4", "4", "images/c.png"]
    assert "1 images have no patient_id; each counts as a patient of its own." in table.notes
    assert "1 boxes are marked as crowds or difficult: they are no targets and are not scored." in table.notes
    (tmp_path / "who.csv").write_text("path,patient\na.png,p\nb.png,p\nimages/c.png,q\n")
    assert Coco(tmp_path, patients=tmp_path / "who.csv").table().frame["patient"].tolist() == ["p", "p", "q"]
    (tmp_path / "who.csv").write_text("path,patient\na.png,p\na.png,q\n")
    with pytest.raises(FinetuneError, match=r"gives several patients \(p, q\) for images/a.png"):
        patients_from(tmp_path / "who.csv", ["images/a.png"])
    with pytest.raises(FinetuneError, match=r"gives no patient for images/b.png"):
        patients_from(tmp_path / "who.csv", ["images/b.png"])


def broken(change) -> dict:
    content = coco_json()
    change(content)
    return content


FAULTS = {
    "annotations with an id that is there already": lambda c: c["annotations"].append(c["annotations"][0]),
    "images with an id that is there already": lambda c: c["images"].append({**c["images"][1], "file_name": "d.png"}),
    "images that are listed twice": lambda c: c["images"].append({**c["images"][1], "id": 9}),
    "annotations of an image that is not listed": lambda c: c["annotations"][0].update(image_id=99),
    "annotations of a category that is not listed": lambda c: c["annotations"][0].update(category_id=99),
    "annotations without bbox": lambda c: c["annotations"][0].pop("bbox"),
    "images without file_name": lambda c: c["images"][1].pop("file_name"),
    "annotations that are no objects": lambda c: c["annotations"].append(3),
    r"box\(es\) without four finite numbers": lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]),
    r"box\(es\) that reach out of their image": lambda c: c["annotations"][0].update(bbox=[30, 2, 30, 4]),
    "images of another size than the annotations say": lambda c: c["images"][0].update(width=400, height=300),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_coco_stop_or_are_counted(tmp_path, kind):
    make_coco(tmp_path, content=broken(FAULTS[kind]))
    with pytest.raises(FinetuneError, match=rf"^1 {kind}, the first: .*data.on_bad=skip"):
        Coco(tmp_path).table()
    table = Coco(tmp_path, on_bad="skip").table()
    note = next(note for note in table.notes if note.startswith("Left out (data.on_bad=skip): 1 "))
    assert kind.replace("\\", "") in note


def test_an_image_that_lost_its_only_box_is_not_a_negative(tmp_path):
    content = coco_json()
    content["annotations"][2]["bbox"] = [0, 0, 0, 5]
    table = Coco(make_coco(tmp_path, content=content), on_bad="skip").table()
    assert boxes_of(table)["c"] is None
    assert "Of 1 images the boxes are not known: they teach nothing and are not scored." in table.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(coco_json())[:-40], "is no whole JSON file, it may have been cut short"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        ("[]", "is not in the format of COCO: .* it has list"),
        ('{"images": [], "info": 1}', "needs the lists images, annotations, categories; it has images, info"),
        (json.dumps(broken(lambda c: c["categories"][0].update(name="node"))), "several categories with the name node"),
        (json.dumps({**coco_json(), "annotations": []}), "none of its 3 images has a box"),
        (json.dumps(broken(lambda c: [i.update(file_name="no.png") for i in c["images"]])), "none of the 3 images"),
    ],
)
def test_files_that_are_no_coco_are_named(tmp_path, text, message):
    make_coco(tmp_path)
    (tmp_path / "annotations/all.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FinetuneError, match=message):
        Coco(tmp_path).table()


def test_coco_without_data(tmp_path):
    for options, message in (
        ({}, "data=coco needs data.root=DIR"),
        ({"root": tmp_path / "no"}, "is not a folder"),
        ({"root": tmp_path}, r"has no annotations/\*.json"),
        ({"annotations": tmp_path / "no.json"}, "no.json cannot be read: No such file"),
    ):
        with pytest.raises(FinetuneError, match=message):
            Coco(**options).table()
    with pytest.raises(FinetuneError, match=r"data.target=class is not known"):
        Coco(tmp_path, target="class")


def test_names_of_splits():
    names = ["train", "instances_train2017", "valid", "val2017", "test-dev", "trainings", "all", "test_train"]
    assert [split_of(name) for name in names] == ["train", "train", "val", "val", None, None, None, None]


def test_splits_are_balanced_over_labels_and_patients_stay_together(tmp_path):
    drawn = {f"i{n}": [("rare" if n % 5 == 0 else "mass", 1, 1, 5, 5)] if n % 2 == 0 else [] for n in range(100)}
    content = coco_json(drawn)
    for number, entry in enumerate(content["images"]):
        entry["patient_id"] = number // 10 * 10 + number % 5
    table = assign_splits(Coco(make_coco(tmp_path, drawn, content)).table(), seed=0)
    rare = np.array([bool(entry) and "rare" in entry.labels for entry in table.annotations["boxes"]])
    assert [rare[table.rows(split)].sum() for split in ("train", "val", "test")] == [7, 1, 2]
    splits = table.frame.groupby("patient")["split"].nunique()
    assert splits.max() == 1


# -- VOC and YOLO -----------------------------------------------------------------------------------------------------


def test_voc_lists_are_the_splits_and_difficult_objects_are_ignored(tmp_path):
    make_voc(tmp_path)
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for name, stems in (("trainval", "a\nb"), ("val", "b"), ("test", "c 1")):
        (tmp_path / f"ImageSets/Main/{name}.txt").write_text(stems + "\n")
    file = tmp_path / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<name>node", "<difficult>1</difficult><name>node"))
    table = Voc(tmp_path).table()
    assert table.frame["split"].tolist() == ["train", "val", "test"]
    entry = table.annotations["boxes"][0]
    assert isinstance(entry, Boxes)
    assert entry.ignored == (True, False)
    (tmp_path / "ImageSets/Main/test.txt").write_text("b\n")
    with pytest.raises(FinetuneError, match=r"b is in test.txt and in train.txt or val.txt"):
        Voc(tmp_path).table()


def test_voc_in_one_folder_without_sizes(tmp_path):
    make_voc(tmp_path)
    for file in [*tmp_path.glob("Annotations/*"), *tmp_path.glob("JPEGImages/*")]:
        file.rename(tmp_path / file.name)
    for file in tmp_path.glob("*.xml"):
        file.write_text(file.read_text().replace(f"<width>{WIDTH}", "<width>0"))
    assert boxes_of(Voc(tmp_path).table()) == DRAWN
    (tmp_path / "b.xml").unlink()
    assert "1 images without a file of annotations are left out." in Voc(tmp_path).table().notes


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("<name>node</name>", "", "objects without a name"),
        ("<xmax>11</xmax>", "", r"box\(es\) without four finite numbers"),
        ("<xmax>11</xmax>", "<xmax>1</xmax>", None),  # a box of one pixel
        ("</annotation>", "", "files that are no whole XML"),
        (f"<width>{WIDTH}", "<width>400", "images of another size than the annotations say"),
    ],
)
def test_faults_of_voc(tmp_path, old, new, kind):
    file = make_voc(tmp_path) / "Annotations/a.xml"
    file.write_text(file.read_text().replace(old, new.replace("1", "2") if kind is None else new))
    if kind is None:
        assert boxes_of(Voc(tmp_path).table())["a"][0] == ("node", 1, 2, 1, 5)
        return
    with pytest.raises(FinetuneError, match=rf"1 {kind}, the first: .*a\."):
        Voc(tmp_path).table()
    assert any("Left out (data.on_bad=skip): 1 " in note for note in Voc(tmp_path, on_bad="skip").table().notes)


def test_voc_without_data(tmp_path):
    with pytest.raises(FinetuneError, match=r"has no XML files in Annotations"):
        Voc(tmp_path).table()
    make_voc(tmp_path)
    (tmp_path / "JPEGImages/a.png").unlink()
    with pytest.raises(FinetuneError, match=r"1 annotations without an image, the first: .*a.xml, no a with .png"):
        Voc(tmp_path).table()
    assert Voc(tmp_path, on_bad="skip").table().paths == ["JPEGImages/b.png", "JPEGImages/c.png"]


@pytest.mark.parametrize("form", ["{}/train/{}", "train/{}/{}"])
def test_yolo_folders_are_the_splits(tmp_path, form):
    make_yolo(tmp_path)
    for split, stems in (("train", "ab"), ("val", "c")):
        for kind in ("images", "labels"):
            for file in list((tmp_path / kind).glob("*.*")):
                if file.stem in stems:
                    place = tmp_path / form.format(kind, file.name).replace("train", split)
                    if not form.startswith("{}"):
                        place = tmp_path / split / kind / file.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    file.rename(place)
    (tmp_path / "loop").symlink_to(tmp_path)
    table = Yolo(tmp_path).table()
    assert boxes_of(table) == DRAWN
    assert table.frame["split"].tolist() == ["train", "train", "val"]
    assert "1 images have no file in labels/: they are negatives, as the format has it." in table.notes
    Image.new("L", (4, 4)).save(images(tmp_path, "images", ["d"]) / "images/d.png")
    with pytest.raises(FinetuneError, match=r"images/d.png lies in no folder train, val or test, but others do"):
        Yolo(tmp_path).table()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2 0.5 0.5 0.1 0.1", "boxes of a class without a name"),
        ("0 0.5 0.5 0.1", "lines that are not CLASS X Y WIDTH HEIGHT"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3", "lines that are not CLASS X Y WIDTH HEIGHT"),
        ("mass 0.1 0.1 0.2 0.2", "lines that are not CLASS X Y WIDTH HEIGHT"),
        ("0 0.5 0.5 0 0.2", r"box\(es\) without an area"),
        ("0 0.9 0.5 0.5 0.2", r"box\(es\) that reach out of their image"),
        ("0 20 15 4 4", r"box\(es\) that reach out of their image"),  # pixels
    ],
)
def test_faults_of_yolo(tmp_path, line, kind):
    file = make_yolo(tmp_path) / "labels/c.txt"
    file.write_text(line + "\n")
    with pytest.raises(FinetuneError, match=rf"1 {kind}, the first: .*c.txt, line 1"):
        Yolo(tmp_path).table()
    assert boxes_of(Yolo(tmp_path, on_bad="skip").table())["c"] is None


def test_names_of_yolo(tmp_path):
    make_yolo(tmp_path, names="names: {0: mass, 1: node}")
    assert boxes_of(Yolo(tmp_path).table()) == DRAWN
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("mass\nnode\n\n")
    assert boxes_of(Yolo(tmp_path).table()) == DRAWN
    for text, message in (("mass\nmass", "must be distinct"), ("", "must be distinct and not blank")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(FinetuneError, match=message):
            Yolo(tmp_path).table()
    for text, message in (("names: 3", "names must be a list"), ("{", "data.yaml cannot be read")):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(FinetuneError, match=message):
            Yolo(tmp_path).table()
    for name in ("data.yaml", "classes.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(FinetuneError, match=r"has none of data.yaml, dataset.yaml, classes.txt"):
        Yolo(tmp_path).table()
    (tmp_path / "x").mkdir()
    (tmp_path / "x/classes.txt").write_text("a")
    with pytest.raises(FinetuneError, match=r"has no images below a folder images/"):
        Yolo(tmp_path / "x").table()


# -- CSV --------------------------------------------------------------------------------------------------------------


def rows(root: Path, *lines: str) -> Path:
    (images(root, ".") / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def test_csv_corners_patients_splits_and_metadata(tmp_path):
    rows(
        tmp_path,
        "path,x1,y1,x2,y2,what,who,part,age",
        "a.png,1,2,11,7,2.0,p,train,50",
        "a.png,20,10,40,30,1,p,train,50",
        "b.png,,,,,,q,val,60",
        "gone.png,,,,,,q,val,60",
    )
    source = csv(tmp_path, label="what", boxes=["x1", "y1", "x2", "y2"], patient="who", split="part", metadata=["age"])
    table = source.table()
    assert boxes_of(table) == {"a": [("2", 1, 2, 10, 5), ("1", 20, 10, 20, 20)], "b": []}
    assert table.frame["patient"].tolist() == ["p", "q"]
    assert table.frame["split"].tolist() == ["train", "val"]
    assert table.frame["age"].tolist() == [50, 60]
    assert table.notes[0].startswith("1 of 3 listed images are absent")
    assert not any("Columns not used" in note for note in table.notes)


def test_csv_of_dicom_files_has_their_patients(tmp_path):
    save_dicom(tmp_path / "a.dcm", np.zeros((HEIGHT, WIDTH), np.uint8), PatientID="p1")
    save_dicom(tmp_path / "b.dcm", np.zeros((HEIGHT, WIDTH), np.uint8), PatientID="p2")
    (tmp_path / "boxes.csv").write_text("path,x,y,w,h,label\na.dcm,1,2,3,4,m\nb.dcm,30,2,30,4,m\n")
    with pytest.raises(FinetuneError, match=r"line 3: \[30.0, 2.0, 60.0, 6.0\] in an image of 40 x 30"):
        csv(tmp_path).table()
    table = csv(tmp_path, on_bad="skip").table()
    assert table.frame["patient"].tolist() == ["p1", "p2"]
    assert boxes_of(table)["b"] is None


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a.png,1,2,3,4,"], {}, r"1 box\(es\) without a label, the first: .*line 2"),
        (["a.png,1,2,,4,m"], {}, r"1 box\(es\) without four finite numbers, the first: .*line 2"),
        (["a.png,1,2,-3,4,m"], {}, "right or bottom before the left or top"),
        (["a.png,1,2,3,4,m", "a.png,5,5,5,5,m"], {"metadata": ["label"]}, None),
        (["a.png,1,2,3,4,m"], {"label": "labl"}, "data.label=labl is not a column.*label"),
        (["a.png,1,2,3,4,m"], {"boxes": ["x", "y", "w", "z"]}, "data.boxes=z is not a column"),
        (["a.png,1,2,3,4,m"], {"boxes": ["x", "y", "w"]}, "must be four columns"),
        (["a.png,1,2,3,4,m"], {"label": ["a", "b"]}, "must be one column where data.target=boxes"),
        (["a.png,,,,,"], {}, "none of its 1 images has a box"),
        (["a.png,1,2,3,4,m", "a.png,1,2,3,4,n"], {"split": "label"}, "line 3: column label is 'n', and 'm' in another"),
        (["a.png,1,2,3,4,m"], {"target": "boxs"}, "data.target=boxs is not known. Did you mean boxes"),
    ],
)
def test_faults_of_a_table_of_boxes(tmp_path, lines, options, message):
    rows(tmp_path, "path,x,y,w,h,label", *lines)
    if message is None:
        assert len(csv(tmp_path, **options).table()) == 1
        return
    with pytest.raises(FinetuneError, match=message):
        CsvTable(tmp_path / "boxes.csv", **{"target": "boxes", **options}).table()


def test_the_form_of_a_box_is_told_by_its_columns():
    for columns in (["x", "y", "w", "h"], ["left", "top", "width", "height"], ["bx", "by", "box_w", "box_h"]):
        assert form_of(columns, None) == "sides"
    for columns in (["x1", "y1", "x2", "y2"], ["x0", "y0", "x1", "y1"], ["xmin", "ymin", "xmax", "ymax"]):
        assert form_of(columns, None) == "corners"
    with pytest.raises(FinetuneError, match=r"is c a width or a right border"):
        form_of(["a", "b", "c", "d"], None)
    assert form_of(["a", "b", "c", "d"], "corners") == "corners"
    with pytest.raises(FinetuneError, match=r"data.box_form=side is not known"):
        form_of(["a", "b", "c", "d"], "side")
