"""The synthetic set: NIH's layout, the same bytes each time, whole or not at all; findings seen and not given away."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.data.phantom.dataset import is_phantom, make_phantoms
from finetune.data.phantom.findings import CTR_ENLARGED, CTR_HEALTHY
from finetune.data.phantom.render import FINDINGS, REGIONS, Study, plan, render
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
    with Image.open(table.file(0)) as image:
        assert (image.mode, image.size) == ("L", (64, 64))


def test_boxes_lie_inside_the_image_and_belong_to_a_finding(phantoms):
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

    monkeypatch.setattr("finetune.data.phantom.dataset.render", stop)
    with pytest.raises(KeyboardInterrupt):
        make_phantoms(tmp_path / "stopped", n_images=3, size=64, workers=1)
    assert list(tmp_path.iterdir()) == []
    assert is_phantom(tmp_path / "stopped") is None


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FinetuneError, match="holds something else"):
        make_phantoms(tmp_path, n_images=2)
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("seed", range(3))
def test_patients_and_findings_of_the_plan(seed):
    studies = plan(600, seed)
    assert len({s.name for s in studies}) == 600
    patients = pd.DataFrame(studies).groupby("patient")
    assert list(patients.groups) == list(range(1, len(patients) + 1))
    assert 180 < len(patients) < 280
    assert 3 < patients.size().max() <= 8
    for _, rows in patients:
        assert rows["follow_up"].tolist() == list(range(len(rows)))
        assert rows["sex"].nunique() == 1
        assert rows["age"].is_monotonic_increasing
        assert len({"Cardiomegaly" in value_found for value_found in rows["findings"]}) == 1
    shares = pd.Series([f for s in studies for f in s.findings]).value_counts() / 600
    assert sorted(shares.index) == list(FINDINGS)
    assert shares.between(0.12, 0.25).all()
    assert 0.35 < sum(not s.findings for s in studies) / 600 < 0.45


def test_metadata_does_not_give_the_findings_away():
    studies = [s for seed in range(12) for s in plan(600, seed)]
    columns = {
        "view": np.array([s.view == "AP" for s in studies]),
        "sex": np.array([s.sex == "F" for s in studies]),
        "age": np.array([s.age for s in studies]),
        "follow_up": np.array([s.follow_up for s in studies]),
    }
    for finding in FINDINGS:
        has = np.array([finding in s.findings for s in studies])
        for name, column in columns.items():
            assert 0.45 < roc_auc_score(has, column) < 0.55, (finding, name)


def one(finding: str | None, patient: int) -> Study:
    return Study(patient, 0, 50, "FM"[patient % 2], "PA", (finding,) if finding else ())


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_image_in_its_boxes_and_hardly_elsewhere(finding):
    for patient in range(1, 6):
        without, value_found = render(one(None, patient), 0, 128), render(one(finding, patient), 0, 128)
        inside = np.zeros((128, 128), dtype=bool)
        for name, (x, y, w, h) in value_found.boxes:
            assert name == finding
            inside[int(y) : int(y + h), int(x) : int(x + w)] = True
        assert without.boxes == []
        assert inside.any()
        change = np.abs(value_found.attenuation - without.attenuation)
        assert change[inside].sum() > 0.9 * change.sum(), patient  # the boxes cover the lesion
        gray = np.abs(value_found.image.astype(float) - without.image)
        assert gray[inside].mean() > 3 * gray[~inside].mean(), patient
        if finding in ("Effusion", "Mass", "Nodule", "Pneumothorax"):
            lungs = inside & (without.mask > 0) & (change > 0.3 * change.max())
            brighter = value_found.image[lungs].mean() > without.image[lungs].mean()
            assert brighter == (finding != "Pneumothorax"), patient  # bone and fluid are bright: MONOCHROME2


def test_cardiomegaly_is_a_cardiothoracic_ratio_above_a_half():
    for patient in range(1, 20):
        healthy, enlarged = (render(one(f, patient), 0, 32).ctr for f in (None, "Cardiomegaly"))
        assert CTR_HEALTHY[0] <= healthy <= CTR_HEALTHY[1] < 0.5 < CTR_ENLARGED[0] <= enlarged <= CTR_ENLARGED[1]


def test_a_patient_keeps_the_body_and_changes_the_pose():
    first = one(None, 7)
    again, other = render(replace(first, follow_up=1), 0, 64), render(first, 0, 64)
    assert again.ctr == other.ctr
    assert np.abs(again.image.astype(float) - other.image).mean() > 5


def test_masks_are_two_lungs(phantoms):
    for path in sorted((phantoms / "masks").iterdir()):
        mask = np.asarray(Image.open(path))
        assert set(np.unique(mask)) == {0, 255}
        image = np.asarray(Image.open(phantoms / "images" / path.name)).astype(float)
        assert mask.shape == image.shape
        lungs = mask > 0
        assert 0.1 < lungs.mean() < 0.6
        halves = lungs[:, :32].sum(), lungs[:, 32:].sum()
        assert min(halves) > 0.2 * max(halves)
        trunk = slice(8, 56), slice(8, 56)
        assert np.median(image[trunk][lungs[trunk]]) < np.median(image[trunk][~lungs[trunk]])


def test_a_linear_model_of_a_thumbnail_is_not_enough():
    """600 images at 48 px, as 16 x 16 thumbnails and their mean: below 0.70 on other patients at any penalty."""
    studies = plan(600, 0)
    thumbnails = [Image.fromarray(render(s, 0, 48).image).resize((16, 16), Image.Resampling.BOX) for s in studies]
    pixels = np.stack([np.asarray(t, dtype=float).ravel() for t in thumbnails])
    pixels = np.c_[pixels, pixels.mean(1)]
    labels = np.array([[f in s.findings for f in FINDINGS] for s in studies])
    patient = np.array([s.patient for s in studies])

    def macro(penalty: float, seed: int) -> float:
        people = np.random.default_rng(seed).permutation(np.unique(patient))
        train = np.isin(patient, people[: int(0.7 * len(people))])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
        scores = [
            roc_auc_score(now[~train], model.fit(pixels[train], now[train]).decision_function(pixels[~train]))
            for now in labels.T
        ]
        return float(np.mean(scores))

    value_found = {penalty: np.mean([macro(penalty, seed) for seed in range(2)]) for penalty in (0.001, 0.01, 0.1, 1.0)}
    assert 0.55 < max(value_found.values()) < 0.70, value_found


def test_builds_side_by_side_end_in_one_whole_set(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        builds = [pool.submit(make_phantoms, tmp_path / "set", n_images=6, size=32, workers=1) for _ in range(2)]
        assert {build.result() for build in builds} == {tmp_path / "set"}
    assert len(list((tmp_path / "set" / "images").iterdir())) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_killed_build_is_no_set_and_does_not_stand_in_the_way(tmp_path):
    code = (
        f"from finetune.data.phantom.dataset import make_phantoms; make_phantoms({str(tmp_path / 'set')!r}, workers=1)"
    )
    build = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".set.building-*/images/*.png")) and time.monotonic() < end:
        time.sleep(0.05)
    build.kill()
    build.wait()
    assert list(tmp_path.glob(".set.building-*"))
    assert is_phantom(tmp_path / "set") is None
    assert not (tmp_path / "set").exists()
    assert is_phantom(make_phantoms(tmp_path / "set", n_images=2, size=32, workers=1))


def test_other_settings_replace_a_set(tmp_path):
    make_phantoms(tmp_path / "set", n_images=3, size=32, workers=1)
    make_phantoms(tmp_path / "set", n_images=2, size=32, workers=1)
    marker = is_phantom(tmp_path / "set")
    assert marker is not None
    assert marker["n_images"] == len(list((tmp_path / "set" / "images").iterdir())) == 2


def test_regions_are_exact_and_the_images_stay_the_same(phantoms, tmp_path):
    masked = make_phantoms(tmp_path / "masked", n_images=24, size=64, seed=3, workers=1, masks=True)
    for file in sorted((phantoms / "images").iterdir()):
        assert file.read_bytes() == (masked / "images" / file.name).read_bytes()
        assert (phantoms / "masks" / file.name).read_bytes() == (masked / "masks/lung" / file.name).read_bytes()
    assert is_phantom(masked) != is_phantom(phantoms)  # another set: neither is taken for the other
    assert make_phantoms(masked, n_images=24, size=64, seed=3, masks=True) == masked
    table = pd.read_csv(masked / "masks.csv").set_index("path")
    boxes = pd.read_csv(masked / "boxes.csv")
    nih = pd.read_csv(masked / "BBox_List_2017.csv", skiprows=1, header=None)
    labels = pd.read_csv(masked / "Data_Entry_2017_v2020.csv").set_index("Image Index")["Finding Labels"]
    assert table.columns[-len(REGIONS) :].tolist() == list(REGIONS)
    assert set(boxes["path"]) == set(table.index)
    assert boxes["label"].notna().sum() == nih[1].isin(["Effusion", "Mass", "Nodule"]).sum()
    for path, row in table.iterrows():
        pixels = {name: np.array(Image.open(masked / row[name])) for name in REGIONS}
        assert all(set(np.unique(mask)) <= {0, 255} for mask in pixels.values())
        assert pixels["lung"].any()
        assert pixels["heart"].any()
        shown = {name for name in FINDINGS if name in REGIONS and pixels[name].any()}
        assert shown == set(labels[path.removeprefix("images/")].split("|")) - {"No Finding", "Cardiomegaly"}
        for x, y, w, h, label in boxes.loc[boxes["path"] == path, ["x", "y", "w", "h", "label"]].dropna().to_numpy():
            inside = pixels[label][int(y) : int(y + h), int(x) : int(x + w)]
            assert inside.any(axis=0).all() or label == "Nodule"
            assert inside.any()
