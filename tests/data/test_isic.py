import numpy as np
import pytest

from finetune.data.sources.isic import CLASSES, Isic
from finetune.errors import FinetuneError

HAM = """lesion_id,image_id,dx,dx_type,age,sex,localization
HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp
HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp
HAM_0002730,ISIC_0026769,mel,histo,,unknown,back
HAM_0000001,ISIC_0024306,nv,follow_up,45.0,female,trunk
"""
ONE_HOT = """image,MEL,NV,BCC,AKIEC,BKL,DF,VASC
ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0
ISIC_0024307,1.0,0.0,0.0,0.0,0.0,0.0,0.0
"""


def put(root, *names, content=b""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def ham(tmp_path):
    put(tmp_path, "HAM10000_metadata.csv", content=HAM)
    put(tmp_path, *(f"HAM10000_images_part_1/ISIC_00{n}.jpg" for n in (27419, 25030)))
    put(tmp_path, *(f"HAM10000_images_part_2/ISIC_00{n}.jpg" for n in (26769, 24306)))
    return tmp_path


def test_ham10000(ham):
    table = Isic(ham).table()
    assert (table.classes, table.kind, table.has_patients) == (CLASSES, "multiclass", True)
    assert table.paths[0] == "HAM10000_images_part_1/ISIC_0027419.jpg"
    assert table.frame["patient"].tolist() == ["HAM_0000118", "HAM_0000118", "HAM_0002730", "HAM_0000001"]
    assert [table.classes[k] for k in table.targets().argmax(axis=1)] == ["BKL", "BKL", "MEL", "NV"]
    assert table.metadata == ["age", "sex", "site", "confirmed_by"]
    np.testing.assert_array_equal(table.frame["age"], [80, 80, np.nan, 45])
    assert table.frame["site"].tolist() == ["scalp", "scalp", "back", "trunk"]
    assert table.frame["split"].isna().all()
    assert table.notes == []


def test_a_partial_download_gives_a_note(ham):
    (ham / "HAM10000_images_part_1" / "ISIC_0027419.jpg").unlink()
    table = Isic(ham).table()
    assert len(table) == 3
    assert table.notes[0].startswith("1 of 4 listed images are absent")


def test_the_challenges_test_beside_ham10000(ham):
    rows = HAM.splitlines()[0] + "\nHAM_T,ISIC_0034524,nv,histo,40,female,back\n"
    put(ham, "ISIC2018_Task3_Test_GroundTruth.csv", content=rows)
    put(ham, "ISIC2018_Task3_Training_GroundTruth.csv", content=ONE_HOT)  # a copy of what HAM10000 says
    put(ham, "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg")
    table = Isic(ham).table()
    assert table.frame["split"].tolist() == ["train"] * 4 + ["test"]
    assert table.frame["patient"].iloc[4] == "HAM_T"


def test_one_hot_tables_with_their_lesions(tmp_path):
    put(tmp_path, "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv", content=ONE_HOT)
    put(tmp_path, "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg", "ISIC2018_Task3_Training_Input/ISIC_0024307.jpg")
    alone = Isic(tmp_path).table()
    assert not alone.has_patients
    assert alone.notes == ["No table names the lesions: every image counts as its own."]
    groups = "image,lesion_id,diagnosis_confirm_type\nISIC_0024307,HAM_7,histopathology\nISIC_0024306,,follow-up\n"
    put(tmp_path, "ISIC2018_Task3_Training_LesionGroupings.csv", content=groups)
    table = Isic(tmp_path).table()
    path = "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg"
    assert table.frame["patient"].tolist() == [path, "HAM_7"]
    assert table.frame["confirmed_by"].tolist() == ["follow-up", "histopathology"]
    assert table.notes == ["1 images have no lesion_id and count as separate lesions."]
    assert table.targets().argmax(axis=1).tolist() == [1, 0]


def test_the_challenge_of_2019_has_classes_of_its_own(tmp_path):
    header = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
    put(tmp_path, "ISIC_2019_Training_GroundTruth.csv", content=header + "a,0,0,0,1,0,0,0,0,0\nb,0,0,0,0,0,0,0,1,0\n")
    metadata = "image,age_approx,anatom_site_general,lesion_id,sex\na,55,head/neck,BCN_1,male\nb,,,BCN_1,female\n"
    put(tmp_path, "ISIC_2019_Training_Metadata.csv", content=metadata)
    put(tmp_path, "ISIC_2019_Training_Input/a.jpg", "ISIC_2019_Training_Input/b.jpg")
    table = Isic(tmp_path).table()
    assert table.classes == ["MEL", "NV", "BCC", "BKL", "DF", "VASC", "AK", "SCC"]  # UNK names no image
    assert [table.classes[k] for k in table.targets().argmax(axis=1)] == ["AK", "SCC"]
    assert table.frame["patient"].tolist() == ["BCN_1", "BCN_1"]
    assert table.frame["sex"].tolist() == ["male", "female"]


def test_three_tables_are_the_three_splits(tmp_path):
    header, row = ONE_HOT.splitlines()[0], "0,1,0,0,0,0,0"
    for split in ("Training", "Validation", "Test"):
        put(tmp_path, f"ISIC2018_Task3_{split}_GroundTruth.csv", content=f"{header}\n{split},{row}\n")
        put(tmp_path, f"images/{split}.jpg")
    assert Isic(tmp_path).table().frame["split"].tolist() == ["test", "train", "val"]


def test_what_is_wrong_is_named(tmp_path, ham):
    with pytest.raises(FinetuneError, match=r"data=isic needs data.root=DIR"):
        Isic().table()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FinetuneError, match="has no table of labels"):
        Isic(tmp_path / "empty").table()
    put(tmp_path, "x/a_Training_GroundTruth.csv", content="image,MEL,NV\na,1,1\n")
    put(tmp_path, "x/a.jpg")
    with pytest.raises(FinetuneError, match="line 2: exactly one of MEL, NV must be 1"):
        Isic(tmp_path / "x").table()
    put(tmp_path, "y/HAM10000_metadata.csv", content=HAM)
    with pytest.raises(FinetuneError, match="none of the 4 listed images is below it"):
        Isic(tmp_path / "y").table()
    put(ham, "HAM10000_metadata.csv", content=HAM + HAM.splitlines()[1] + "\n")
    with pytest.raises(FinetuneError, match="ISIC_0027419 is listed twice"):
        Isic(ham).table()
