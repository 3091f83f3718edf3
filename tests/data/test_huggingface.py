import builtins
import io

import pytest
from PIL import Image

from finetune.data.decoding.images import read_image
from finetune.data.sources.huggingface import HuggingFace
from finetune.errors import FinetuneError, MissingExtra
from tests.data.making import noise

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No hub, no progress bars, and a cache of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def encoded(seed, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(noise(5, 6, seed=seed)).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def repo(root, label=None, **parts):
    """A data set as the hub has it: parquet files, encoded images, class names."""
    for name, rows in parts.items():
        features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=["cat", "dog"])}
        columns = {
            "image": [encoded(seed, "JPEG" if seed % 2 else "PNG") for seed in range(len(rows))],
            "label": rows,
            "owner": [f"p{i // 2}" for i in range(len(rows))],
        }
        data = datasets.Dataset.from_dict(
            columns, features=datasets.Features({**features, "owner": datasets.Value("string")})
        )
        (root / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return str(root)


def test_images_are_written_once_and_the_hub_is_not_needed_again(tmp_path, monkeypatch):
    name = repo(tmp_path / "org" / "pets", train=[0, 1, 1], validation=[1], test=[0, -1])
    table = HuggingFace(tmp_path / "out", name).table()
    assert (table.name, table.classes, table.kind) == ("pets", ["cat", "dog"], "multiclass")
    assert table.frame["split"].tolist() == ["train"] * 3 + ["val"] + ["test"] * 2
    assert table.paths[:2] == ["images/train/000000.png", "images/train/000001.jpg"]
    assert table.frame["target_dog"].tolist()[:5] == [0, 1, 1, 1, 0]
    assert table.frame["target_dog"].isna().tolist() == [False] * 5 + [True]
    assert "1 images have no label; it is unknown." in table.notes
    assert read_image(table.file(0)).tolist() == noise(5, 6, seed=0).tolist()
    assert table.file(1).read_bytes() == encoded(1, "JPEG")["bytes"]  # as they came, not encoded again
    monkeypatch.setattr(datasets, "load_dataset", None)
    again = HuggingFace(tmp_path / "out", name).table()
    assert again.hash() == table.hash()


def test_patients_and_a_single_part(tmp_path):
    name = repo(tmp_path / "set", train=[0, 1, 1, 0])
    table = HuggingFace(tmp_path / "out", name, patient="owner").table()
    assert table.has_patients
    assert table.frame["patient"].tolist() == ["p0", "p0", "p1", "p1"]
    assert table.frame["split"].isna().all()  # one part is no split: it is drawn
    assert table.notes == []


def test_lists_of_classes_and_plain_columns(tmp_path):
    several = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    table = HuggingFace(tmp_path / "1", repo(tmp_path / "set1", several, train=[[0, 2], [], [1]])).table()
    assert table.kind == "multilabel"
    assert table.targets().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    text = repo(tmp_path / "set2", datasets.Value("string"), train=["owl", "bee", "owl"])
    with pytest.raises(FinetuneError, match=r"has no such column: name it, data.label="):
        HuggingFace(tmp_path / "2", text).table()
    table = HuggingFace(tmp_path / "2", text, label="label").table()
    assert table.classes == ["bee", "owl"]
    assert table.targets().argmax(axis=1).tolist() == [1, 0, 1]
    grades = repo(tmp_path / "set3", datasets.Value("int64"), train=[10, 2, 10])
    assert HuggingFace(tmp_path / "3", grades, label="label").table().classes == ["2", "10"]
    many = repo(tmp_path / "set5", datasets.Value("int64"), train=[*range(11)] * 2)
    with pytest.raises(
        FinetuneError, match=r"data.label=label holds 11 distinct numbers from 0 to 10 .*label_type=class"
    ):
        HuggingFace(tmp_path / "5", many, label="label").table()
    assert not (tmp_path / "5" / "images").exists()
    wanted = HuggingFace(tmp_path / "5", many, label="label", label_type="class")
    assert wanted.table().classes == [str(number) for number in range(11)]
    assert len(HuggingFace(tmp_path / "5", many, label="label").table()) == 22  # it is not written again
    share = repo(tmp_path / "set4", datasets.Value("float32"), train=[0.5, 0.1])
    with pytest.raises(FinetuneError, match="only classes or lists of named classes are read"):
        HuggingFace(tmp_path / "4", share, label="label").table()


def test_other_parts_are_left_out_with_a_word(tmp_path):
    name = repo(tmp_path / "set", train=[0, 1], test=[1], extra=[0])
    table = HuggingFace(tmp_path / "out", name).table()
    assert len(table) == 3
    assert table.notes[0] == "Splits that are neither train, validation nor test are left out: extra."


def test_a_killed_run_and_a_folder_in_the_way(tmp_path):
    name = repo(tmp_path / "set", train=[0, 1])
    (tmp_path / "out" / ".images-part" / "train").mkdir(parents=True)
    (tmp_path / "out" / ".images-part" / "train" / "000000.png").write_bytes(b"half")
    (tmp_path / "out" / "train").mkdir()
    (tmp_path / "out" / "train" / "mine.png").write_bytes(b"mine")
    assert len(HuggingFace(tmp_path / "out", name).table()) == 2
    assert (tmp_path / "out" / "train" / "mine.png").read_bytes() == b"mine"
    assert not (tmp_path / "out" / ".images-part").exists()
    with pytest.raises(FinetuneError, match=r"with other settings.*Choose another folder"):
        HuggingFace(tmp_path / "out", name, patient="owner").table()
    (tmp_path / "out" / "images" / "train" / "000001.jpg").unlink()
    with pytest.raises(FinetuneError, match=r"1 of 2 images of .* are gone"):
        HuggingFace(tmp_path / "out", name).table()
    (tmp_path / "mine" / "images").mkdir(parents=True)
    with pytest.raises(FinetuneError, match="images exists but is not from"):
        HuggingFace(tmp_path / "mine", name).table()


def test_out_of_reach_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(FinetuneError, match=r"data.repo=nobody/nothing cannot be loaded: Couldn't reach") as caught:
        HuggingFace(tmp_path, "nobody/nothing").table()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "images").exists()
    for given, message in (((None, "a/b"), "needs data.root=DIR"), ((tmp_path, None), "needs data.repo=ORG")):
        with pytest.raises(FinetuneError, match=message):
            HuggingFace(*given).table()
    name = repo(tmp_path / "set", train=[0, 1])
    for options, message in (
        ({"label": "lable"}, "data.label=lable is not a column of .*: image, label, owner"),
        ({"image": "owner"}, "data.image=owner of .* holds no images"),
        ({"patient": "x"}, "data.patient=x is not a column"),
    ):
        with pytest.raises(FinetuneError, match=message):
            HuggingFace(tmp_path / "out", name, **options).table()
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module == "datasets":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r'needs datasets: pip install -e "\.\[huggingface\]"'):
        HuggingFace(tmp_path / "out", name).table()
