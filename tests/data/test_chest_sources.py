"""Sources of chest X-rays, each on a tiny copy of the published layout."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from finetune.data.annotations import Boxes
from finetune.data.sources import chexpert, mimic
from finetune.data.sources.chexpert import CheXpert
from finetune.data.sources.mimic import MimicCxr
from finetune.data.sources.padchest import PadChest
from finetune.data.sources.rsna import MAPPING, Rsna
from finetune.data.sources.vindr import VinDr
from finetune.data.splits import assign_splits
from finetune.errors import FinetuneError
from tests.data.test_sources import touch

NAN = np.nan


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def column(table, finding):
    return table.frame[f"target_{finding}"].to_numpy()


# -- CheXpert ---------------------------------------------------------------------------------------------------------

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
)
HEADER += (
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
TRAIN = [
    "{}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "{}/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "{}/train/patient00002/study2/view2_lateral.jpg,Male,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
]
VALID = [
    "{}/valid/patient64541/study1/view1_frontal.jpg,Unknown,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,0.0,0.0"
]
SMALL = "CheXpert-v1.0-small"


def make_chexpert(root, place=SMALL, named=SMALL, train=TRAIN):
    for name, rows in (("train", train), ("valid", VALID)):
        write(root / place / f"{name}.csv", HEADER, *(row.format(named) for row in rows))
        touch(root / place, *(row.split(",")[0].removeprefix("{}/") for row in rows))
    return root


@pytest.mark.parametrize(("place", "named"), [(SMALL, SMALL), (".", SMALL), ("CheXpert-v1.0", "CheXpert-v1.0")])
def test_chexpert_small_or_full_above_or_inside_its_folder(tmp_path, place, named):
    table = CheXpert(make_chexpert(tmp_path, place, named)).table()
    assert (table.name, table.kind, table.has_patients) == ("chexpert", "multilabel", True)
    assert table.classes == chexpert.FINDINGS
    assert all(table.file(row).is_file() for row in range(len(table)))
    frame = table.frame
    assert frame["patient"].tolist() == ["patient00001", "patient00002", "patient64541"]
    assert frame["study"].tolist() == ["patient00001/study1", "patient00002/study2", "patient64541/study1"]
    assert frame["view"].tolist() == ["frontal"] * 3
    assert frame["projection"].tolist() == ["AP", "PA", "AP"]
    assert frame["sex"].tolist() == ["F", "M", ""]
    assert frame["age"].tolist() == [68, 87, 73]
    assert frame["split"].tolist() == ["train", "train", "test"]
    assert table.metadata == ["study", "view", "projection", "age", "sex"]
    assert table.notes == ["1 images are no frontal views and are left out (data.views=frontal)."]
    np.testing.assert_array_equal(column(table, "Effusion"), [0, NAN, 1])  # blank is 0, -1 is unknown
    np.testing.assert_array_equal(column(table, "Support_Devices"), [1, 0, 0])


def test_chexpert_in_batches(tmp_path):
    make_chexpert(tmp_path, "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0")
    for batch, patient in (("batch 2 (train 1)", "patient00001"), ("batch 3 (train 2)", "patient00002")):
        target = tmp_path / f"CheXpert-v1.0 {batch}"
        target.mkdir()
        (tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)" / "train" / patient).rename(target / patient)
    table = CheXpert(tmp_path, views="all").table()
    assert len(table) == 4
    assert all(table.file(row).is_file() for row in range(4))
    assert table.paths[0] == "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg"


def test_chexpert_views(tmp_path):
    make_chexpert(tmp_path)
    assert CheXpert(tmp_path, views="all").table().frame["view"].tolist() == [
        "frontal",
        "frontal",
        "lateral",
        "frontal",
    ]
    assert CheXpert(tmp_path, views="lateral").table().paths == [f"{SMALL}/train/patient00002/study2/view2_lateral.jpg"]
    with pytest.raises(FinetuneError, match=r"data.views=side is not known. Choose from frontal, lateral, all"):
        CheXpert(tmp_path, views="side")
    make_chexpert(tmp_path, train=TRAIN[:1])
    with pytest.raises(FinetuneError, match=r"data.views=lateral: none of the 2 listed images is one"):
        CheXpert(tmp_path, views="lateral").table()


def test_chexpert_policies_per_finding(tmp_path):
    make_chexpert(tmp_path)
    uncertain = {"default": "zero", "Edema": "one", "Pleural_Effusion": {"soft": [0.55, 0.85]}}
    table = CheXpert(tmp_path, uncertain=uncertain, missing={"default": "ignore", "Edema": "zero"}).table()
    np.testing.assert_array_equal(column(table, "Edema"), [0, 1, 0])
    np.testing.assert_array_equal(column(table, "Cardiomegaly"), [NAN, 0, 1])
    np.testing.assert_array_equal(column(table, "Pneumothorax"), [0, NAN, 0])
    effusion = column(table, "Effusion")
    assert 0.55 <= effusion[1] <= 0.85
    assert np.isnan(effusion[0])
    one = CheXpert(tmp_path, findings=["Pleural Effusion"], uncertain=uncertain, missing="zero").table()
    assert one.classes == ["Effusion"]
    assert column(one, "Effusion").tolist() == [0, effusion[1], 1]
    with pytest.raises(FinetuneError, match=r"data.uncertain.Hernia: the data set has no such finding"):
        CheXpert(tmp_path, uncertain={"Hernia": "one"})


def test_chexpert_valid_is_the_test_and_val_is_cut_from_train(tmp_path):
    train = [TRAIN[0].replace("00001", f"{n:05d}") for n in range(1, 31)]
    make_chexpert(tmp_path, train=train)
    table = assign_splits(CheXpert(tmp_path).table(), seed=0)
    assert table.frame["split"].value_counts().to_dict() == {"train": 27, "val": 3, "test": 1}
    assert table.frame["split"].iloc[-1] == "test"
    table = assign_splits(CheXpert(tmp_path, valid="val").table(), seed=0)
    assert table.frame["split"].value_counts().to_dict() == {"train": 24, "test": 6, "val": 1}
    with pytest.raises(FinetuneError, match=r"data.valid=train is not known. Choose from test, val"):
        CheXpert(tmp_path, valid="train")


def test_chexpert_in_part_or_not_at_all(tmp_path):
    with pytest.raises(FinetuneError, match=r"has no train.csv or valid.csv(.|\n)*stanfordmlgroup.*data.root=DIR"):
        CheXpert(tmp_path).table()
    make_chexpert(tmp_path)
    (tmp_path / SMALL / "train/patient00001/study1/view1_frontal.jpg").unlink()
    assert CheXpert(tmp_path).table().notes[-1].startswith("1 of 3 listed images are absent under ")
    (tmp_path / SMALL / "train.csv").unlink()  # enough to evaluate on
    assert CheXpert(tmp_path).table().frame["split"].tolist() == ["test"]
    (tmp_path / SMALL / "valid/patient64541/study1/view1_frontal.jpg").unlink()
    with pytest.raises(FinetuneError, match=r"none of the 1 images of valid.csv is there, e.g. .*data.root=DIR"):
        CheXpert(tmp_path).table()


def test_chexpert_with_a_strange_table(tmp_path):
    make_chexpert(tmp_path, train=[TRAIN[0], TRAIN[1].replace(",-1.0,1.0,", ",-1.0,2,")])
    with pytest.raises(FinetuneError, match=r"train.csv, line 3: column Lung Opacity holds '2'"):
        CheXpert(tmp_path).table()
    make_chexpert(tmp_path, train=[TRAIN[0].replace("patient00001/", "")])
    with pytest.raises(FinetuneError, match=r"line 2: Path '.*' does not end in patientN/studyN/FILE"):
        CheXpert(tmp_path).table()


# -- MIMIC-CXR-JPG ----------------------------------------------------------------------------------------------------

STUDIES = [
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices",
    "10000032,50414267,,,,,,,,,1.0,,,,,",
    "10000764,57375967,,,1.0,,,,,,,-1.0,,-1.0,0.0,",
]
IMAGES = [
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns",
    "02aa804e,10000032,50414267,CHEST (PA AND LAT),PA,3056,2544",
    "174413ec,10000032,50414267,CHEST (PA AND LAT),LATERAL,3056,2544",
    "096052b7,10000764,57375967,CHEST (PORTABLE AP),AP,2539,3050",
    "dcfeeac4,10000898,50771383,,PA,3050,2539",
    "d7b2c4e1,10000764,57375967,,LAO,2539,3050",
]
SPLIT = [
    "dicom_id,study_id,subject_id,split",
    "02aa804e,50414267,10000032,train",
    "174413ec,50414267,10000032,train",
    "096052b7,57375967,10000764,validate",
    "dcfeeac4,50771383,10000898,test",
    "d7b2c4e1,57375967,10000764,validate",
]


def make_mimic(root, suffix=".csv.gz", split=SPLIT, studies=STUDIES):
    for what, rows in (("chexpert", studies), ("metadata", IMAGES), ("split", split)):
        if rows:
            write(root / f"mimic-cxr-2.0.0-{what}{suffix}", *rows)
    for row in IMAGES[1:]:
        image, patient, study = row.split(",")[:3]
        touch(root, f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg")
    return root


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_mimic_labels_of_the_study_and_the_official_split(tmp_path, suffix):
    table = MimicCxr(make_mimic(tmp_path, suffix)).table()
    assert (table.name, table.has_patients, table.classes) == ("mimic", True, chexpert.FINDINGS)
    assert table.paths == ["files/p10/p10000032/s50414267/02aa804e.jpg", "files/p10/p10000764/s57375967/096052b7.jpg"]
    assert table.frame["patient"].tolist() == ["10000032", "10000764"]
    assert table.frame["split"].tolist() == ["train", "val"]
    assert table.metadata == ["study", "projection", "view"]
    assert table.frame["projection"].tolist() == ["PA", "AP"]
    np.testing.assert_array_equal(column(table, "Consolidation"), [0, 1])
    np.testing.assert_array_equal(column(table, "Effusion"), [0, NAN])
    np.testing.assert_array_equal(column(table, "No Finding"), [1, 0])
    assert table.notes == [
        "2 images are no frontal views and are left out (data.views=frontal).",
        "The official split is used.",
        "1 images are of studies without labels and are left out.",
    ]
    everything = MimicCxr(tmp_path, views="all").table()
    assert everything.frame["view"].tolist() == ["frontal", "lateral", "frontal", ""]
    assert MimicCxr(tmp_path, official_split=False).table().frame["split"].isna().all()


def test_mimic_without_its_split_or_tables(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FinetuneError, match=r"physionet.org/content/mimic-cxr-jpg.*data.root=DIR"):
            MimicCxr(root).table()
    make_mimic(tmp_path, split=None)
    assert MimicCxr(tmp_path).table().frame["split"].isna().all()
    with pytest.raises(FinetuneError, match=r"has no mimic-cxr-2.0.0-split.csv\(.gz\)"):
        MimicCxr(tmp_path, official_split=True).table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"split": [*SPLIT[:-1], SPLIT[-1].replace("validate", "holdout")]},
            "line 6: split 'holdout' is none of train",
        ),
        ({"split": SPLIT[:-1]}, "lacks 1 of the listed images, first d7b2c4e1"),
        ({"studies": [*STUDIES, STUDIES[1]]}, "line 4: study 50414267 is there twice"),
        ({"studies": [STUDIES[0], "1,2" + "," * 14]}, "labels none of the studies"),
        ({"studies": [*STUDIES[:2], STUDIES[2].replace(",,,1.0", ",,,x")]}, "line 3: column Consolidation holds 'x'"),
    ],
)
def test_mimic_with_strange_tables(tmp_path, change, message):
    with pytest.raises(FinetuneError, match=message):
        MimicCxr(make_mimic(tmp_path, **change)).table()


def test_mimic_views_are_those_of_the_positions():
    assert {mimic.VIEW.get(position) for position in ("PA", "AP", "LL", "LATERAL", "LAO")} == {
        "frontal",
        "lateral",
        None,
    }


# -- RSNA -------------------------------------------------------------------------------------------------------------


def boxes_of(table) -> list[Boxes]:
    return table.annotations["boxes"]


def texts(table) -> list[str]:
    return [boxes.content() for boxes in boxes_of(table)]


LABELS = [
    "patientId,x,y,width,height,Target",
    "0004cfab,,,,,0",
    "00436515,264.0,152.0,213.0,379.0,1",
    "00436515,562.0,152.0,256.0,453.0,1",
    "00704310,323.0,577.0,160.0,104.0,1",
]


def make_rsna(root, labels=LABELS, suffix=".dcm", present=3):
    write(root / "stage_2_train_labels.csv", *labels)
    names = list(dict.fromkeys(row.split(",")[0] for row in labels[1:]))[:present]
    touch(root, *(f"stage_2_train_images/{name}{suffix}" for name in names))
    return root


@pytest.mark.parametrize("suffix", [".dcm", ".png"])
def test_rsna_one_row_per_image_with_its_boxes(tmp_path, suffix):
    table = Rsna(make_rsna(tmp_path, suffix=suffix)).table()
    assert table.paths == [f"stage_2_train_images/{name}{suffix}" for name in ("0004cfab", "00436515", "00704310")]
    assert (table.classes, table.kind, table.has_patients) == (["Pneumonia"], "multilabel", False)
    assert table.targets()[:, 0].tolist() == [0, 1, 1]
    assert texts(table)[:2] == ["", "Pneumonia 264 152 213 379; Pneumonia 562 152 256 453"]
    assert boxes_of(table)[2].sides() == [("Pneumonia", 323, 577, 160, 104)]
    assert boxes_of(table)[2].corners.tolist() == [[323, 577, 483, 681]]
    assert all(boxes.complete for boxes in boxes_of(table))
    assert (table.metadata, list(table.annotations)) == ([], ["boxes"])
    assert "two images of a person may fall into two splits" in table.notes[0]
    assert Rsna(tmp_path, finding="Lung Opacity").table().classes == ["Lung_Opacity"]


def test_rsna_detailed_classes_and_who_is_who(tmp_path):
    make_rsna(tmp_path)
    readings = ["0004cfab,Normal", "00436515,Lung Opacity", "00436515,Lung Opacity", "00704310,Lung Opacity"]
    write(tmp_path / "stage_2_detailed_class_info.csv", "patientId,class", *readings)
    names = {"0004cfab": "00000030_001.png", "00436515": "00012508_000.png", "00704310": "00012508_004.png"}
    entries = [{"subset_img_id": image, "img_id": nih, "orig_labels": []} for image, nih in names.items()]
    (tmp_path / MAPPING).write_text(json.dumps(entries))
    table = Rsna(tmp_path).table()
    assert table.has_patients
    assert table.frame["patient"].tolist() == ["30", "12508", "12508"]
    assert table.frame["reading"].tolist() == ["Normal", "Lung Opacity", "Lung Opacity"]
    assert table.notes == [f"Patients are those of NIH ChestX-ray14, by {MAPPING}."]
    (tmp_path / MAPPING).write_text(json.dumps(entries[:2]))
    with pytest.raises(FinetuneError, match="lacks 1 of the 3 images"):
        Rsna(tmp_path).table()
    (tmp_path / MAPPING).write_text("[1]")
    with pytest.raises(FinetuneError, match="is not the published list"):
        Rsna(tmp_path).table()


def test_rsna_in_part_or_strange(tmp_path):
    with pytest.raises(FinetuneError, match=r"has no stage_2_train_labels.csv(.|\n)*kaggle.*data.root=DIR"):
        Rsna(tmp_path).table()
    assert Rsna(make_rsna(tmp_path, present=2)).table().notes[0].startswith("1 of 3 listed images are absent")
    for labels, message in (
        ([*LABELS, "00704310,1,2,3,4,0"], "Target is blank or differs between the rows of 00704310"),
        ([*LABELS, "00704310,1,2,3,,1"], "line 6: x, y, width, height are"),
        ([*LABELS, "00704310,1,2,-3,4,1"], "line 6: x, y, width, height are"),
        (["patientId,Target", "a,1"], "x=x is not a column"),
    ):
        with pytest.raises(FinetuneError, match=message):
            Rsna(make_rsna(tmp_path, labels)).table()
    with pytest.raises(FinetuneError, match="none of the 1 images"):
        Rsna(make_rsna(tmp_path, [LABELS[0], "zz,,,,,0"], present=0)).table()
    with pytest.raises(FinetuneError, match=r"data.finding=Mass is not known. Choose from Pneumonia, Lung_Opacity"):
        Rsna(tmp_path, finding="Mass")


# -- VinDr-CXR --------------------------------------------------------------------------------------------------------

VINDR_TRAIN = [
    "image_id,rad_id,Nodule/Mass,Pleural effusion,Other diseases,No finding",
    "000434271f,R8,0,1,0,0",
    "000434271f,R9,0,1,0,0",
    "000434271f,R10,1,0,0,0",
    "00053190460d,R8,0,0,1,0",
    "00053190460d,R9,0,0,1,0",
    "00053190460d,R10,0,0,1,0",
]
VINDR_TEST = ["image_id,Nodule/Mass,Pleural effusion,Other disease,No finding", "002a34c58c,0,0,0,1"]


def make_vindr(root, train=VINDR_TRAIN, test=VINDR_TEST, suffix=".dicom"):
    for split, rows in (("train", train), ("test", test)):
        if rows:
            write(root / "annotations" / f"image_labels_{split}.csv", *rows)
            touch(root, *(f"{split}/{row.split(',')[0]}{suffix}" for row in rows[1:]))
    return root


@pytest.mark.parametrize("suffix", [".dicom", ".png", ".jpg"])
def test_vindr_by_majority(tmp_path, suffix):
    table = VinDr(make_vindr(tmp_path, suffix=suffix)).table()
    assert table.classes == ["Nodule_or_Mass", "Effusion", "Other_Disease", "No Finding"]
    assert table.paths == [f"train/000434271f{suffix}", f"train/00053190460d{suffix}", f"test/002a34c58c{suffix}"]
    np.testing.assert_array_equal(table.targets(), [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert table.frame["split"].tolist() == ["train", "train", "test"]
    assert not table.has_patients
    assert table.frame["patient"].tolist() == table.paths


def test_vindr_by_any_reader_and_ties(tmp_path):
    make_vindr(tmp_path)
    np.testing.assert_array_equal(VinDr(tmp_path, votes="any").table().targets()[0], [1, 1, 0, 0])
    make_vindr(tmp_path, VINDR_TRAIN[:3] + VINDR_TRAIN[4:])
    make_vindr(tmp_path, [*VINDR_TRAIN[:2], *VINDR_TRAIN[3:]])  # one of two is not more than half
    np.testing.assert_array_equal(VinDr(tmp_path).table().targets()[0], [0, 0, 0, 0])
    with pytest.raises(FinetuneError, match=r"data.votes=all is not known. Choose from majority, any"):
        VinDr(tmp_path, votes="all")


def test_vindr_findings_absent_in_a_table_are_unknown(tmp_path):
    test = [VINDR_TEST[0].replace("Nodule/Mass", "ILD"), VINDR_TEST[1]]
    table = VinDr(make_vindr(tmp_path, test=test), findings=["ILD", "Pleural effusion", "Nodule/Mass"]).table()
    np.testing.assert_array_equal(table.targets(), [[NAN, 1, 0], [NAN, 0, 0], [0, 0, NAN]])
    with pytest.raises(FinetuneError, match=r"data.findings=Hernia is not known"):
        VinDr(tmp_path, findings=["Hernia"]).table()


def test_vindr_in_part_or_strange(tmp_path):
    with pytest.raises(
        FinetuneError, match=r"has no annotations/image_labels_train.csv(.|\n)*physionet.*data.root=DIR"
    ):
        VinDr(tmp_path).table()
    make_vindr(tmp_path)
    (tmp_path / "train" / "000434271f.dicom").unlink()
    assert VinDr(tmp_path).table().notes[0].startswith("1 of 3 listed images are absent")
    (tmp_path / "annotations" / "image_labels_test.csv").unlink()
    assert VinDr(tmp_path).table().frame["split"].tolist() == ["train"]
    with pytest.raises(FinetuneError, match="line 2: column Nodule/Mass holds '3'"):
        VinDr(make_vindr(tmp_path, [VINDR_TRAIN[0], "a,R1,3,0,0,0"])).table()
    with pytest.raises(FinetuneError, match="002a34c58c is there twice, without a column rad_id"):
        VinDr(make_vindr(tmp_path, test=[*VINDR_TEST, VINDR_TEST[1]])).table()


VINDR_DRAWN = [
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
    "000434271f,R8,Pleural effusion,10.5,20,30,50",
    "000434271f,R9,Pleural effusion,12,20,32,50",
    "000434271f,R10,Nodule/Mass,1,2,3,4",  # by one reader of three: no label, so no box
    "00053190460d,R8,No finding,,,,",
    "ffff,R8,Pleural effusion,1,2,3,4",  # an image that is not there
]
BOTH = "Effusion 10.5 20 19.5 30; Effusion 12 20 20 30"


def test_vindr_boxes_of_what_the_label_has(tmp_path):
    make_vindr(tmp_path)
    assert VinDr(tmp_path).table().annotations == {}
    write(tmp_path / "annotations" / "annotations_train.csv", *VINDR_DRAWN)
    table = VinDr(tmp_path).table()
    assert (table.metadata, list(table.annotations)) == ([], ["boxes"])
    assert texts(table) == [BOTH, "", ""]
    assert boxes_of(table)[0].corners[0].tolist() == [10.5, 20, 30, 50]
    assert texts(VinDr(tmp_path, votes="any").table())[0] == f"{BOTH}; Nodule_or_Mass 1 2 2 2"
    assert not any(texts(VinDr(tmp_path, findings=["Nodule/Mass"]).table()))
    test = ["image_id,class_name,x_min,y_min,x_max,y_max", "002a34c58c,Nodule/Mass,0,0,5,7"]
    write(tmp_path / "annotations" / "annotations_test.csv", *test)
    make_vindr(tmp_path, test=[VINDR_TEST[0], "002a34c58c,1,0,0,0"])
    assert texts(VinDr(tmp_path).table()) == [BOTH, "", "Nodule_or_Mass 0 0 5 7"]


@pytest.mark.parametrize(("side", "kept"), [(50, True), (40, False)])
def test_vindr_boxes_that_do_not_fit_the_images_are_left_out(tmp_path, side, kept):
    make_vindr(tmp_path, suffix=".png")
    for file in tmp_path.rglob("*.png"):
        Image.new("L", (side, side)).save(file)
    write(tmp_path / "annotations" / "annotations_train.csv", *VINDR_DRAWN)
    table = VinDr(tmp_path).table()
    assert texts(table) == [BOTH if kept else "", "", ""]
    assert [boxes.complete for boxes in boxes_of(table)] == [kept] * 3
    assert (table.notes[-1].startswith("Boxes are left out: they are in pixels of the DICOM")) is not kept


@pytest.mark.parametrize("numbers", ["1,2,3,", "4,2,3,4", "a,2,3,4"])
def test_vindr_with_a_box_that_is_none(tmp_path, numbers):
    make_vindr(tmp_path)
    write(
        tmp_path / "annotations" / "annotations_train.csv", VINDR_DRAWN[0], f"000434271f,R8,Pleural effusion,{numbers}"
    )
    with pytest.raises(FinetuneError, match=r"annotations_train.csv, line 2: x_min, y_min, x_max, y_max are \["):
        VinDr(tmp_path).table()


# -- PadChest ---------------------------------------------------------------------------------------------------------

PAD_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels"
)
PAD = [
    "0,a.png,0,20140915,s1,p1,1930.0,F,PA,Physician,\"['pleural effusion', ' laminar atelectasis']\"",
    "1,b.png,0,20140915,s1,p1,1930.0,F,L,Physician,\"['pleural effusion', 'laminar atelectasis']\"",
    "2,c.png,12,20100101,s2,p2,,M,AP_horizontal,RNN_model,['normal']",
    "3,d.png,12,20100101,s3,p3,1990,M,PA,RNN_model,['unchanged']",
    "4,e.png,12,20100101,s4,p4,1990,M,PA,RNN_model,",
    "5,f.png,12,20100101,s5,p5,1990,M,AP,RNN_model,\"['exclude', 'nodule']\"",
    "6,g.png,12,20100101,s6,p6,1990,M,PA,RNN_model,\"['scoliosis', 'unchanged', 'consolidation']\"",
]
PAD_NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def make_padchest(root, rows=PAD, name=PAD_NAME, flat=False):
    write(root / name, PAD_HEADER, *rows)
    for row in rows:
        _, image, folder = row.split(",")[:3]
        touch(root, f"images-224/{image}" if flat else f"{folder}/{image}")
    return root


@pytest.mark.parametrize(("name", "flat"), [(PAD_NAME, False), (PAD_NAME + ".gz", True)])
def test_padchest_lists_of_findings(tmp_path, name, flat):
    table = PadChest(make_padchest(tmp_path, name=name, flat=flat)).table()
    assert all(table.file(row).is_file() for row in range(len(table)))
    assert [path.rpartition("/")[2] for path in table.paths] == ["a.png", "c.png", "d.png", "e.png", "g.png"]
    assert table.frame["patient"].tolist() == ["p1", "p2", "p3", "p4", "p6"]
    assert table.frame["projection"].tolist() == ["PA", "AP_horizontal", "PA", "PA", "PA"]
    assert table.frame["sex"].tolist() == ["F", "M", "M", "M", "M"]
    np.testing.assert_array_equal(table.frame["age"], [84, NAN, 20, 20, 20])
    assert table.metadata == ["view", "projection", "sex", "age", "study", "labelled_by"]
    np.testing.assert_array_equal(column(table, "Effusion"), [1, 0, NAN, NAN, NAN])
    np.testing.assert_array_equal(column(table, "Atelectasis"), [1, 0, NAN, NAN, NAN])  # laminar is a kind of it
    np.testing.assert_array_equal(column(table, "Consolidation"), [0, 0, NAN, NAN, 1])
    np.testing.assert_array_equal(column(table, "Infiltration"), [0, 0, NAN, NAN, 1])  # consolidation is a kind of it
    assert table.notes == [
        "1 images are no frontal views and are left out (data.views=frontal).",
        "1 images are labelled 'exclude' and are left out.",
    ]


def test_padchest_policies_and_labels_of_its_own(tmp_path):
    make_padchest(tmp_path)
    table = PadChest(tmp_path, findings=["scoliosis", "Pleural Effusion"], missing={"Effusion": "zero"}).table()
    assert table.classes == ["scoliosis", "Effusion"]
    np.testing.assert_array_equal(table.targets(), [[0, 1], [0, 0], [NAN, 0], [NAN, 0], [1, 0]])
    with pytest.raises(FinetuneError, match=r"data.findings=scoliosi is not known. Did you mean scoliosis\?"):
        PadChest(tmp_path, findings=["scoliosi"]).table()
    with pytest.raises(FinetuneError, match=r"data.missing.Hernja: the data set has no such finding"):
        PadChest(tmp_path, missing={"Hernja": "zero"}).table()
    assert PadChest(tmp_path, views="lateral").table().paths == ["0/b.png"]


@pytest.mark.parametrize(
    "cell",
    ["__import__('os').system('touch hacked')", "['nodule'", "{'nodule': 1}", "[1, 2]", "(" * 500, "nodule"],
)
def test_padchest_reads_lists_of_text_and_runs_nothing(tmp_path, monkeypatch, cell):
    monkeypatch.chdir(tmp_path)
    quoted = '"' + cell.replace('"', '""') + '"'
    make_padchest(tmp_path, [*PAD, f"7,h.png,12,20100101,s7,p7,1990,M,PA,Physician,{quoted}"])
    with pytest.raises(FinetuneError, match=r"labels_160K_01.02.19.csv, line 9: Labels .* is not a list like"):
        PadChest(tmp_path).table()
    assert not (tmp_path / "hacked").exists()


def test_padchest_without_its_table(tmp_path):
    with pytest.raises(FinetuneError, match=r"has no PADCHEST_chest(.|\n)*bimcv.*data.labels=FILE"):
        PadChest(tmp_path).table()
    make_padchest(tmp_path, name="mine.csv")
    assert len(PadChest(tmp_path, labels=tmp_path / "mine.csv").table()) == 5
    with pytest.raises(FinetuneError, match="PatientID is blank in 1 row"):
        PadChest(make_padchest(tmp_path, [PAD[0].replace(",p1,", ",,")])).table()


# -- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_balanced_over_the_same_whatever_is_learned(tmp_path):
    sets = {
        CheXpert: (make_chexpert, {"findings": ["Edema"]}, {"uncertain": "one", "missing": "one"}),
        MimicCxr: (make_mimic, {"findings": ["Edema", "No Finding"]}, {"uncertain": "one"}),
        VinDr: (make_vindr, {"findings": ["Effusion"]}, {"votes": "any"}),
        PadChest: (make_padchest, {"findings": ["scoliosis"]}, {"missing": "zero"}),
    }
    for source, (make, *choices) in sets.items():
        root = tmp_path / source.__name__
        root.mkdir()
        make(root)
        whole = source(root).table().strata.labels
        assert whole.any(axis=0).sum() > 1
        for choice in choices:
            assert source(root, **choice).table().strata.labels.tolist() == whole.tolist()


def test_padchest_strata_are_of_all_its_labels(tmp_path):
    labels = PadChest(make_padchest(tmp_path), findings=["Effusion"]).table().strata.labels
    # effusion, atelectasis and the kind of it; Normal; nothing twice; infiltration, consolidation and scoliosis
    assert labels.sum(axis=1).tolist() == [3, 1, 0, 0, 3]
