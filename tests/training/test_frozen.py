"""Activations of frozen parts, computed once: the same bits as computing them in every epoch, and when they are not."""

import copy
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch

from finetune.data.loading.augment import Augment
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError
from finetune.plan import Phase, Plan
from finetune.training.averaging import Ema, Swa
from finetune.training.frozen import FrozenActivations
from finetune.training.frozen_key import key_of
from finetune.training.frozen_ranges import FrozenRange, frozen_ranges
from tests.training import tiny

PARTS = ["stem", "stage1", "stage2", "stage3", "head"]
PROBE = Plan({"head": Phase(0, ["head"])})
LATE = Plan({"all": Phase(0, ["all"]), "head": Phase(2, ["head"])})
GRADUAL = Plan({"head": Phase(0, ["head"]), "last": Phase(2, ["last", "head"]), "full": Phase(5, ["all"])})


def augmentation() -> Augment:
    return Augment(tiny.SIZE, {"flip": albumentations.HorizontalFlip(p=0.5), "turn": albumentations.Rotate(p=1)})


def data(versions: int | None = None, augment: Augment | None = None) -> ImageData:
    made = tiny.data(augment=augment)
    made.train_dataset.versions = versions
    return made


def fitted(folder: Path, plan: Plan, mode: str, epochs: int = 3, sentences: list | None = None, **options):
    """State after a fit, and the frozen activations of it."""
    module, images = tiny.module(plan), data(**options)
    frozen = FrozenActivations(
        module, images, epochs, mode=mode, directory=folder / "cache", say=(sentences or []).append
        if sentences is None else sentences.append,
    )  # fmt: skip
    images.activations = frozen if frozen.ranges else None
    tiny.trainer(folder, epochs).fit(module, images)
    return tiny.state(module), frozen


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_ranges_of_epochs_with_the_same_frozen_parts():
    assert frozen_ranges(PROBE, PARTS, ["head"], 10) == [FrozenRange(range(10), "head")]
    gradual = frozen_ranges(GRADUAL, PARTS, ["head"], 8)
    assert gradual == [FrozenRange(range(2), "head"), FrozenRange(range(2, 5), "stage3")]
    assert frozen_ranges(Plan(), PARTS, ["head"], 8) == []
    assert frozen_ranges(Plan(PROBE.phases, frozen_norms="stats"), PARTS, ["head"], 8) == []
    assert frozen_ranges(GRADUAL, PARTS, ["head"], 1) == []  # a single epoch gains nothing
    assert frozen_ranges(Plan({"odd": Phase(0, ["stem", "head"])}), PARTS, ["head"], 8) == []


@pytest.mark.parametrize("plan", [PROBE, GRADUAL], ids=["probe", "gradual"])
def test_the_weights_are_those_of_a_fit_that_computes_everything(tmp_path, plan):
    sentences: list[str] = []
    stored, frozen = fitted(tmp_path / "a", plan, "on", epochs=6, sentences=sentences)
    computed, _ = fitted(tmp_path / "b", plan, "off", epochs=6)
    assert_equal(stored, computed)
    assert (tmp_path / "a" / "metrics.csv").read_text().count("\n") == 7
    assert sentences[0].startswith("Frozen up to head in epochs 0 to ")
    assert "36 train images are computed once, 9.2 kB" in sentences[0] or "MB" in sentences[0]
    assert len([held for held in frozen.opened.values() if held is not None]) == (2 if plan is PROBE else 4)


def test_versions_of_augmented_images_in_turn(tmp_path):
    stored, frozen = fitted(tmp_path / "a", PROBE, "on", epochs=5, versions=2, augment=augmentation())
    computed, _ = fitted(tmp_path / "b", PROBE, "off", epochs=5, versions=2, augment=augmentation())
    assert_equal(stored, computed)
    train = frozen.opened["train", 0]
    assert len(train._values) == 2 * 36
    assert torch.equal(train.take([1, 2], 0), train.take([1, 2], 4))
    assert not torch.equal(train.take([1, 2], 0), train.take([1, 2], 1))


def test_new_versions_in_every_epoch_leave_only_the_validation_to_store(tmp_path):
    stored, frozen = fitted(tmp_path / "a", PROBE, "on", augment=augmentation())
    computed, _ = fitted(tmp_path / "b", PROBE, "off", augment=augmentation())
    assert_equal(stored, computed)
    assert frozen.opened["train", 0] is None
    assert frozen.opened["val", 0] is not None


def test_a_second_fit_reads_what_the_first_has_stored_and_other_weights_do_not(tmp_path):
    sentences: list[str] = []
    fitted(tmp_path, PROBE, "on", sentences=sentences)
    assert len(sentences) == 2
    fitted(tmp_path, PROBE, "on", sentences=sentences)
    assert len(sentences) == 2
    module, images = tiny.module(PROBE), data()
    with torch.no_grad():
        module.network.backbone.conv1.weight[0, 0, 0, 0] += 1
    images.activations = FrozenActivations(
        module, images, 3, mode="on", directory=tmp_path / "cache", say=sentences.append
    )
    tiny.trainer(tmp_path / "other", 3).fit(module, images)
    assert len(sentences) == 4


def test_half_stores_16_bits(tmp_path):
    stored, frozen = fitted(tmp_path / "a", PROBE, "half")
    computed, _ = fitted(tmp_path / "b", PROBE, "off")
    assert frozen.opened["train", 0]._values.itemsize == 2
    weight = "network.head.fc.weight"
    torch.testing.assert_close(stored[weight], computed[weight], rtol=0.02, atol=0.01)


def test_auto_leaves_it_where_reading_takes_longer_than_computing(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.training.frozen.READ_RATE", 1.0)
    _, frozen = fitted(tmp_path, PROBE, "auto")
    assert set(frozen.opened.values()) == {None}


def test_what_cannot_be_stored_is_an_error_where_it_was_asked_for(tmp_path):
    with pytest.raises(FinetuneError, match=r"frozen_cache=on: no part is frozen in two successive epochs"):
        fitted(tmp_path, Plan(), "on")


def test_activations_of_parts_that_the_fit_has_changed_are_removed(tmp_path):
    def folders() -> int:
        return len([path for path in (tmp_path / "cache" / "activations").iterdir() if path.is_dir()])

    _, frozen = fitted(tmp_path, GRADUAL, "on", epochs=6)
    frozen.remove()
    assert folders() == 4  # both ranges lie below what was trained so far: another fit may read them
    _, frozen = fitted(tmp_path, LATE, "on", epochs=5)
    assert folders() == 6
    frozen.remove()
    assert folders() == 4


@pytest.mark.parametrize("kind", [Ema(0.9), Swa(0.0)], ids=["ema", "swa"])
def test_an_average_that_still_moves_is_validated_by_itself(tmp_path, kind):
    """Parts that were trained and then frozen: their average moves on while their weights do not."""
    values = {}
    for mode in ("on", "off"):
        module, images = tiny.module(LATE), data()
        frozen = FrozenActivations(module, images, 5, mode=mode, averaged=True, directory=tmp_path / "cache")
        images.activations = frozen if frozen.ranges else None
        tiny.trainer(tmp_path / mode, 5, [copy.deepcopy(kind)]).fit(module, images)
        rows = (tmp_path / mode / "metrics.csv").read_text().splitlines()
        values[mode] = [row.split(",")[:6] for row in rows]
        if mode == "on":
            assert frozen.opened["val", 0] is None
            assert frozen.opened["train", 0] is not None
    assert values["on"] == values["off"]


def test_a_head_that_pools_in_another_way_has_other_activations(tmp_path):
    keys = []
    for pool in ("avg", "max"):
        module, images = tiny.module(PROBE), data()
        held = FrozenRange(range(3), "head")
        facts = {"head": {"name": "classify", "pool": pool}}
        keys.append(key_of(module, images, "train", held, images.rows("train"), 1, {12}, facts))
        keys.append(key_of(module, images, "train", FrozenRange(range(3), "stage3"), np.array([1]), 1, {12}, facts))
    assert keys[0] != keys[2]
    assert keys[1] == keys[3]  # nothing of the head lies below stage3


def test_an_error_while_activations_are_computed_is_the_one_that_is_raised(tmp_path, monkeypatch):
    module, images = tiny.module(PROBE), data()

    def fail(*_):
        raise FinetuneError("no space")

    images.activations = frozen = FrozenActivations(module, images, 3, mode="on", directory=tmp_path / "cache")
    monkeypatch.setattr(frozen, "_write", fail)
    with pytest.raises(FinetuneError, match="no space"):
        tiny.trainer(tmp_path, 3).fit(module, images)
    assert list((tmp_path / "cache" / "activations").glob("*.part-*")) == []


def test_a_folder_that_cannot_be_written_to_leaves_everything_computed(tmp_path):
    (tmp_path / "activations").write_text("a file")
    sentences: list[str] = []
    module, images = tiny.module(PROBE), data()
    images.activations = FrozenActivations(module, images, 3, directory=tmp_path, say=sentences.append)
    tiny.trainer(tmp_path / "run", 3).fit(module, images)
    assert "are not stored" in sentences[0]
    module, images = tiny.module(PROBE), data()
    images.activations = FrozenActivations(module, images, 3, mode="on", directory=tmp_path)
    with pytest.raises(FinetuneError, match=r"frozen_cache=on: .*Use frozen_cache=off"):
        tiny.trainer(tmp_path / "again", 3).fit(module, images)


def test_a_teacher_reads_the_images(tmp_path):
    module = tiny.module(PROBE)
    module.objective.needs_images = True
    assert FrozenActivations(module, data(), 3, directory=tmp_path).ranges == []
    with pytest.raises(FinetuneError, match="the teacher reads the images"):
        FrozenActivations(module, data(), 3, mode="on", directory=tmp_path)


@pytest.mark.parametrize("name", ["mixing", "progressive"])
def test_images_that_change_with_the_epoch_are_not_stored(tmp_path, name):
    images = data(versions=2, augment=augmentation())
    setattr(images.train_dataset, name, object())
    frozen = FrozenActivations(tiny.module(PROBE), images, 5, mode="on", directory=tmp_path)
    assert frozen.versions() is None
