import pandas as pd
import pytest

from finetune.data.audit.audit import audit_table
from finetune.data.sources.kermany import Kermany
from finetune.data.splits import assign_splits
from finetune.errors import FinetuneError

FILES = {
    "train/NORMAL": ["IM-0115-0001.jpeg", "NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-0383-0001-0002.jpeg"],
    "train/PNEUMONIA": ["person7_bacteria_24.jpeg", "person7_bacteria_25.jpeg", "person7_virus_12.jpeg"],
    "val/NORMAL": ["NORMAL2-IM-1427-0001.jpeg"],
    "val/PNEUMONIA": ["person1946_bacteria_4874.jpeg"],
    "test/NORMAL": ["IM-0001-0001.jpeg"],
    "test/PNEUMONIA": ["person78_bacteria_378.jpeg", "person1_virus_11_1.jpeg"],
}


def lay_out(root, files=FILES):
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"")
    return root


@pytest.fixture
def root(tmp_path):
    return lay_out(tmp_path / "chest_xray")


def test_the_published_layout(root):
    table = Kermany(root).table()
    assert (table.kind, table.classes, table.name) == ("multiclass", ["NORMAL", "PNEUMONIA"], "kermany")
    assert len(table) == 11
    assert table.frame["target_PNEUMONIA"].sum() == 6
    of = dict(zip(table.paths, table.frame["patient"], strict=True))
    assert of["train/PNEUMONIA/person7_bacteria_24.jpeg"] == of["train/PNEUMONIA/person7_bacteria_25.jpeg"]
    assert of["train/PNEUMONIA/person7_virus_12.jpeg"] == "person7_virus"  # another person than person7_bacteria
    assert of["train/NORMAL/IM-0115-0001.jpeg"] != of["train/NORMAL/NORMAL2-IM-0115-0001.jpeg"]
    assert of["train/NORMAL/NORMAL2-IM-0383-0001-0002.jpeg"] == "NORMAL2-IM-0383"
    assert of["test/PNEUMONIA/person1_virus_11_1.jpeg"] == "person1_virus"
    assert table.has_patients
    assert not audit_table(table).leaks


def test_the_small_val_is_train_by_default(root):
    table = Kermany(root).table()
    assert table.frame["split"].value_counts().to_dict() == {"train": 8, "test": 3}
    assert table.notes == [
        "The published val of 2 images is too small for choosing a model and counts as train "
        "(data.official_val=true keeps it)."
    ]
    cut = assign_splits(table, seed=0, val=0.3)
    assert set(cut.frame["split"][-3:]) == {"test"}
    assert len(cut.rows("val")) > 0
    kept = Kermany(root, official_val=True).table()
    assert kept.frame["split"].value_counts().to_dict() == {"train": 6, "test": 3, "val": 2}
    assert kept.notes == []
    drawn = Kermany(root, official_split=False).table()
    assert drawn.frame["split"].isna().all()
    assert drawn.strata.labels.sum(axis=0).tolist() == [5, 4, 2]  # normal, bacteria, virus, whatever is learned
    for classes in ("three", "finding"):
        same = Kermany(root, classes=classes, official_split=False).table()
        assert same.strata.labels.tolist() == drawn.strata.labels.tolist()
    assert drawn.notes == []
    with pytest.raises(FinetuneError, match=r"official_val=true needs data.official_split=true"):
        Kermany(root, official_split=False, official_val=True)


def test_three_classes_and_a_finding(root):
    (root / "train" / "PNEUMONIA" / "odd.jpeg").write_bytes(b"")
    three = Kermany(root, classes="three").table()
    assert three.classes == ["NORMAL", "BACTERIA", "VIRUS"]
    assert three.targets().sum(axis=0).tolist() == [5, 4, 2]
    assert "1 file names have neither bacteria nor virus and are left out: train/PNEUMONIA/odd.jpeg." in three.notes
    two = Kermany(root).table()
    assert "1 file names have no patient; each counts as its own: train/PNEUMONIA/odd.jpeg." in two.notes
    finding = Kermany(root, classes="finding").table()
    assert (finding.kind, finding.classes) == ("multilabel", ["Pneumonia"])  # as in data=chestxray
    assert finding.targets().sum() == 7
    with pytest.raises(FinetuneError, match=r"data.classes=four is not known. .*Choose from two, three"):
        Kermany(root, classes="four")


def test_names_of_the_third_edition(tmp_path):
    files = {
        "train/NORMAL": ["NORMAL-28501-0001.jpeg"],
        "train/PNEUMONIA": ["BACTERIA-7422-0001.jpeg", "BACTERIA-7422-0002.jpeg", "VIRUS-5230729-0001.jpeg"],
    }
    table = Kermany(lay_out(tmp_path, files), classes="three").table()
    assert table.frame["patient"].tolist() == ["28501", "7422", "7422", "5230729"]
    assert table.targets().argmax(axis=1).tolist() == [0, 1, 1, 2]


def test_the_folder_may_lie_within_another_and_hidden_files_do_not_count(root):
    (root / "train" / "NORMAL" / "._IM-0115-0001.jpeg").write_bytes(b"")
    (root / "train" / "NORMAL" / ".DS_Store").write_bytes(b"")
    table = Kermany(root.parent).table()
    assert len(table) == 11
    assert table.paths[0] == "chest_xray/train/NORMAL/IM-0115-0001.jpeg"


def test_what_is_missing_says_where_to_get_it(tmp_path):
    for root in (None, tmp_path, tmp_path / "gone"):
        with pytest.raises(FinetuneError, match=r"data.root=.*rscbjbr9sj"):
            Kermany(root).table()
    (tmp_path / "train").mkdir()
    with pytest.raises(FinetuneError, match="has no images in train/ and test/"):
        Kermany(tmp_path).table()


def test_real_names_give_the_patients_of_the_metadata(shared_data, tmp_path):
    rows = pd.read_csv(shared_data / "kermany" / "metadata.csv")
    folders = rows["split"].replace("val", "train") + "/" + rows["label"]
    names = rows["path"].str.rpartition("/")[2]
    lay_out(tmp_path / "all", {folder: names[folders == folder].tolist() for folder in folders.unique()})
    table = Kermany(tmp_path / "all").table()
    assert len(table) == 2620
    expected = dict(zip(folders + "/" + names, rows["patient_id"], strict=True))
    assert dict(zip(table.paths, table.frame["patient"], strict=True)) == expected
    assert not audit_table(table).leaks  # train and test of the published set share nobody, read so
    assert Kermany(tmp_path / "all", classes="three").table().targets().sum(axis=0).tolist() == [1231, 847, 542]
