"""The synthetic set: NIH's layout, the same bytes each time, whole or not at all."""

import pandas as pd
import pytest
from PIL import Image

from finetune.data.phantom import plan
from finetune.data.phantom_set import is_phantom, make_phantoms
from finetune.data.sources.chestxray import ChestXray
from finetune.errors import FinetuneError


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return make_phantoms(tmp_path_factory.mktemp("set") / "phantom", n_images=24, size=64, seed=3, workers=1)


def test_the_layout_is_nihs(phantoms, shared_data):
    ours, theirs = (pd.read_csv(r / "Data_Entry_2017_v2020.csv", nrows=24) for r in (phantoms, shared_data / "nih"))
    assert ours.columns.tolist() == theirs.columns.tolist()
    boxes = (phantoms / "BBox_List_2017.csv").read_text().splitlines()
    assert boxes[0] == (shared_data / "nih" / "BBox_List_2017.csv").read_text().splitlines()[0]


def test_the_source_reads_it_and_knows_that_it_is_made_up(phantoms):
    table = ChestXray(str(phantoms)).table()
    assert len(table) == 24
    assert table.synthetic
    assert table.has_patients
    with Image.open(table.file(0)) as picture:
        assert (picture.mode, picture.size) == ("L", (64, 64))


def test_boxes_lie_inside_the_picture_and_belong_to_a_finding(phantoms):
    labels = pd.read_csv(phantoms / "Data_Entry_2017_v2020.csv").set_index("Image Index")["Finding Labels"]
    boxes = pd.read_csv(phantoms / "BBox_List_2017.csv", skiprows=1, header=None)
    assert len(boxes) > 5
    for name, finding, x, y, w, h in boxes.iloc[:, :6].itertuples(index=False):
        assert finding in labels[name].split("|")
        assert x >= 0
        assert y >= 0
        assert x + w <= 64
        assert y + h <= 64
        assert min(w, h) > 0


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(phantoms, tmp_path):
    again = make_phantoms(tmp_path / "again", n_images=24, size=64, seed=3, workers=2)
    other = make_phantoms(tmp_path / "other", n_images=3, size=64, seed=4, workers=1)
    for path in sorted(phantoms.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(phantoms)).read_bytes(), path
    name = "images/00000001_000.png"
    assert (phantoms / name).read_bytes() != (other / name).read_bytes()


def test_a_finished_set_is_taken_as_it_is_and_a_stopped_build_is_none(phantoms, tmp_path, monkeypatch):
    before = (phantoms / "PHANTOM.json").stat().st_mtime_ns
    make_phantoms(phantoms, n_images=24, size=64, seed=3)
    assert (phantoms / "PHANTOM.json").stat().st_mtime_ns == before

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.data.phantom_set.render", stop)
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(tmp_path / "stopped", n_images=3, size=64, workers=1)
    assert list(tmp_path.iterdir()) == []
    assert is_phantom(tmp_path / "stopped") is None


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FinetuneError, match="holds something else"):
        make_phantoms(tmp_path, n_images=2)
    assert (tmp_path / "mine.txt").exists()


def test_patients_and_findings_of_the_plan():
    studies = plan(600, 0)
    assert len(studies) == 600
    per_patient = pd.Series([s.patient for s in studies]).value_counts()
    assert 150 < len(per_patient) < 320
    assert 3 < per_patient.max() <= 8
    shares = pd.Series([f for s in studies for f in s.findings]).value_counts() / 600
    assert len(shares) >= 6
    assert shares.between(0.12, 0.25).all()
    assert 0.3 < sum(not s.findings for s in studies) / 600 < 0.45
