"""Mixup and CutMix: answers worked by hand, and the same batch whoever makes it."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from finetune.config import build, compose
from finetune.data.loading.augment import Augment
from finetune.data.loading.dataset import ImageDataset
from finetune.data.loading.mixing import Blend, CutMix, Mixup, MixupOrCutMix, mix_targets, partner_of
from finetune.data.loading.module import ImageData
from finetune.data.loading.progressive import Progressive
from finetune.data.loading.sampling import EpochBatchSampler
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.training import tiny

albumentations = pytest.importorskip("albumentations")
N, SIZE = 24, tiny.SIZE
P = Preprocessing(image_size=SIZE, in_channels=1, mean=(0.5,), std=(0.25,))
MIXINGS = (Mixup(p=0.7), CutMix(), MixupOrCutMix())
NAN = float("nan")


class Half:
    """Always the same blend."""

    p = 1.0

    def __init__(self, share: float, centre=None):
        self.blend = Blend(share, centre)

    def draw(self, random):
        return self.blend


def dataset(mixing, *, kind: str = "multilabel", augmented: bool = True, progressive=None, partners=None):
    table, images = tiny.table(N, kind, unknown=0.2)
    moves = {"shift": albumentations.Affine(rotate=(-20, 20), translate_percent=(-0.2, 0.2), p=1)}
    augment = Augment(SIZE, moves) if augmented else None
    return ImageDataset(
        table.targets(), images, P, augment, seed=3, mixing=mixing, partners=partners, progressive=progressive
    )


def test_a_mixed_image_by_hand():
    data = dataset(Half(0.25), augmented=False, partners=np.array([7]))
    plain = dataset(None, augmented=False).__getitems__([2, 7])
    batch = data.__getitems__([2, 7])
    image, partner = plain["image"]
    torch.testing.assert_close(batch["image"][0], 0.75 * image + 0.25 * partner)
    torch.testing.assert_close(batch["image"][1], partner)  # with itself
    torch.testing.assert_close(
        batch["target"][0], 0.75 * plain["target"][0] + 0.25 * plain["target"][1], equal_nan=True
    )
    assert batch["index"].tolist() == [2, 7]
    assert torch.equal(data.targets.isnan(), dataset(None).targets.isnan())  # the table's targets are not changed


def test_a_rectangle_by_hand():
    image, partner = torch.zeros(2, 8, 8), torch.ones(2, 8, 8)
    assert Blend(0.25, (0.5, 0.5)).apply(image, partner) == 0.25  # sides of 8 * sqrt(1/4) about (4, 4)
    assert image.sum() == 2 * 16
    assert (image[:, 2:6, 2:6] == 1).all()
    image.zero_()
    assert Blend(0.25, (0.0, 0.99)).apply(image, partner) == 2 * 3 / 64  # columns 0 to 1, rows 5 to 7
    assert (image[:, 5:, :2] == 1).all()
    assert image.sum() == 2 * 6
    assert Blend(0.001, (0.5, 0.5)).apply(image.zero_(), partner) == 0.0  # a rectangle of less than a pixel
    assert Blend(1.0, (0.5, 0.5)).apply(image, partner) == 1.0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_rectangle_is_torchvisions(side, share, x, y):
    left, top = int(x * side), int(y * side)
    half = int(0.5 * math.sqrt(share) * side)
    area = (min(side, left + half) - max(0, left - half)) * (min(side, top + half) - max(0, top - half))
    image = torch.zeros(1, side, side)
    assert Blend(share, (x, y)).apply(image, torch.ones(1, side, side)) == area / side**2
    assert image.sum() == area


def test_unknown_in_either_is_unknown():
    mixed = mix_targets(torch.tensor([1.0, NAN, 0.0, NAN]), torch.tensor([0.0, 1.0, NAN, NAN]), 0.25)
    assert mixed[0] == 0.75
    assert mixed[1:].isnan().all()
    assert mix_targets(torch.tensor([NAN]), torch.tensor([1.0]), 1.0).isnan()
    assert mix_targets(torch.tensor([1.0]), torch.tensor([NAN]), 0.0).isnan()


def batches(data, workers=0, rank=0, world=1, epoch=2, weights=None):
    sampler = EpochBatchSampler(range(N), 6, seed=3, rank=rank, world_size=world, weights=weights)
    sampler.set_epoch(epoch)
    context = "fork" if workers else None
    return list(
        DataLoader(
            data, batch_sampler=sampler, num_workers=workers, collate_fn=data.collate, multiprocessing_context=context
        )
    )


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        for key in ("image", "target", "index"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mixing", MIXINGS, ids=lambda mixing: type(mixing).__name__)
def test_batches_do_not_depend_on_workers_ranks_or_sampler(mixing):
    data = dataset(mixing, progressive=Progressive(4, multiple=4))
    alone = batches(data)
    assert_same(alone, batches(data, workers=2))
    by_row = {int(i): (x, t) for b in alone for i, x, t in zip(b["index"], b["image"], b["target"], strict=True)}
    halves = [batch for rank in range(2) for batch in batches(data, rank=rank, world=2)]
    drawn = batches(data, weights=np.arange(1, N + 1))
    for batch in halves + drawn:
        for index, image, target in zip(batch["index"], batch["image"], batch["target"], strict=True):
            assert torch.equal(image, by_row[int(index)][0])
            torch.testing.assert_close(target, by_row[int(index)][1], rtol=0, atol=0, equal_nan=True)
    assert len(by_row) == sum(len(batch["index"]) for batch in halves) == N
    assert not torch.equal(alone[0]["image"], batches(data, epoch=1)[0]["image"])


def test_the_partner_is_augmented_as_itself():
    """With share 1 an image is its partner, pixel by pixel."""
    seven = np.array([7])
    swapped, plain = dataset(Half(1.0), partners=seven), dataset(None)
    batch = swapped.__getitems__([(5, 2), (5, 3)])
    alone = plain.__getitems__([(5, 7)])
    for image, target in zip(batch["image"], batch["target"], strict=True):
        assert torch.equal(image, alone["image"][0])
        known = ~target.isnan()
        assert torch.equal(target[known], alone["target"][0][known])


def test_partners_and_shares():
    rows = np.arange(10, 20)
    draw = partial(partner_of, seed=0, rows=rows)
    drawn = [draw(Mixup(p=0.5), epoch=e, row=r) for e in range(20) for r in range(10, 30)]
    assert 140 < sum(pair is None for pair in drawn) < 260  # 200 +- 6 standard deviations
    partners = [pair[0] for pair in drawn if pair is not None]
    assert set(partners) == set(rows.tolist())
    assert draw(Mixup(), epoch=1, row=12) == draw(Mixup(), epoch=1, row=12)
    assert draw(Mixup(p=0.0), epoch=1, row=12) is None
    shares = [draw(Mixup(alpha=0.2), epoch=e, row=1)[1].share for e in range(400)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.mean([min(s, 1 - s) for s in shares]) < 0.12  # Beta(0.2, 0.2) lies near 0 and 1
    cut = [draw(MixupOrCutMix(cutmix_share=0.25), epoch=e, row=1)[1].centre is not None for e in range(400)]
    assert np.mean(cut) == pytest.approx(0.25, abs=0.1)


def test_exclusive_classes_become_soft_rows_that_sum_to_one():
    for mixing in MIXINGS:
        for batch in batches(dataset(mixing, kind="multiclass")):
            torch.testing.assert_close(batch["target"].sum(dim=1), torch.ones(len(batch["target"])))


def test_only_train_is_mixed_and_only_with_train():
    table, images = tiny.table(N)
    data = ImageData(table, images, P, None, batch_size=6, mixing=CutMix(p=1.0), progressive=Progressive(3, multiple=4))
    assert data.train_dataset.partners.tolist() == table.rows("train").tolist()
    plain = ImageData(table, images, P, None, batch_size=6)
    assert_same(data.val_dataloader(), plain.val_dataloader())
    assert not torch.equal(next(iter(data.train_dataloader()))["image"][0, 0, 0], torch.zeros(SIZE))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixing=mixup", "mixing.alpha=0"], r"mixing.alpha=0.* must be a number above 0; mixing=none"),
        (["mixing=cutmix", "mixing.p=2"], r"mixing.p=2.* must lie between 0 and 1"),
        (["mixing=mixup_cutmix", "mixing.cutmix_share=-1"], r"mixing.cutmix_share=-1.* must lie between"),
        (["mixing=mixup", "mixing.alpha=abc"], r"mixing.alpha=abc should be"),
        (["mixing=mixup", "task=detect"], r"are for classes and findings, not for data.target=boxes. Set mixing=none"),
        (["mixing=mixup", "task=segment", "data=folder", "data.root=x"], r"not for data.target=mask"),
    ],
)
def test_misuse_is_named(words, message):
    with pytest.raises(FinetuneError, match=message):
        build.check(compose.plain(compose.compose(words)))
