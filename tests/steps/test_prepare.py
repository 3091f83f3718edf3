"""Near copies at the start of a job: certain ones stop it or are moved together, possible ones do neither."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from finetune.config import compose
from finetune.config.settings import DataSettings, parse
from finetune.data.audit.near_duplicates import Pair
from finetune.data.cache import image_cache as caches
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.steps import prepare
from tests.data.making import make_table, save


@pytest.fixture
def images(tmp_path):
    """Eight images; the last is the first one, brighter."""
    for i in range(8):
        field = gaussian_filter(np.random.default_rng(i % 7).standard_normal((64, 64)), 1.5)
        save((110 + 30 * field / field.std() + 20 * (i == 7)).clip(0, 255).astype(np.uint8), tmp_path / f"{i:04d}.png")
    return tmp_path


def data(near: bool = True, on_leak: str = "stop") -> DataSettings:
    words = ["data=csv", "data.cache=off", f"data.audit.near={near}", f"data.audit.on_leak={on_leak}"]
    return parse(compose.plain(compose.compose(words))).data


def decode_and_audit(table, run, **options):
    sentences: list[str] = []
    preprocessing = Preprocessing(image_size=64)
    folder = None if run is None else RunFolder(run)
    result = prepare.decode_and_audit(data(**options), table, preprocessing, sentences.append, folder)
    return result[0], " ".join(sentences)


SPLITS = ["train"] * 5 + ["val", "test", "test"]


def test_a_certain_copy_across_a_given_split_stops_and_the_error_names_the_files(images, tmp_path):
    table = make_table(images, None, None, SPLITS)
    with pytest.raises(FinetuneError, match=r"divided between train and test: 0000\.png ~ 0007\.png") as caught:
        decode_and_audit(table, tmp_path)
    assert str(tmp_path / "near_copies.png") in str(caught.value)
    with Image.open(tmp_path / "near_copies.png") as sheet:
        assert sheet.width < 2 * 170  # one pair, and no empty columns
    assert json.loads((tmp_path / "audit.json").read_text())["near"][0]["certainty"] == "certain"
    assert decode_and_audit(table, None, near=False)[0].frame["split"].tolist() == SPLITS
    assert decode_and_audit(table, None, on_leak="warn")[0].frame["split"].tolist() == SPLITS


def test_a_certain_copy_across_a_generated_split_is_moved(images):
    generated = replace(make_table(images, None, None, SPLITS), generated_splits=("train", "val", "test"))
    table, text = decode_and_audit(generated, None)
    assert table.frame["split"].tolist() == ["train"] * 5 + ["val", "test", "train"]
    assert "1 image(s) changed to the split of a copy" in text


@pytest.mark.parametrize("generated", [(), ("train", "val", "test")])
def test_a_possible_copy_stops_nothing_and_moves_nothing(images, tmp_path, monkeypatch, generated):
    monkeypatch.setattr(caches, "near_duplicates", lambda *a: [Pair(0, 7, 0.95, 0.7, "possible")])
    table, text = decode_and_audit(
        replace(make_table(images, None, None, SPLITS), generated_splits=generated), tmp_path
    )
    assert table.frame["split"].tolist() == SPLITS
    assert "1 pair(s) of images may be near copies, 1 of them in two splits: 0000.png ~ 0007.png." in text
    assert "changed to the split" not in text
    assert (tmp_path / "near_copies.png").exists()
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["leaks"] == []
    assert [item["certainty"] for item in audit["near"]] == ["possible"]
