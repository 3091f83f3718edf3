import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from finetune.data.cache.image_cache import ImageCache
from finetune.data.loading.augment import Augment
from finetune.data.loading.dataset import ImageDataset
from finetune.data.loading.sampling import EpochBatchSampler, EvalBatchSampler
from finetune.preprocessing import Preprocessing
from tests.data.making import make_images

albumentations = pytest.importorskip("albumentations")
P = Preprocessing(image_size=8)
N = 22


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), N)


@pytest.fixture
def dataset(table):
    moves = {"shift": albumentations.Affine(rotate=(-20, 20), translate_percent=(-0.2, 0.2), p=1)}
    return ImageDataset(table.targets(), ImageCache.build(table, P, "off"), P, Augment(8, moves), seed=3)


def digest(batch) -> str:
    return hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in ("image", "target", "index"))).hexdigest()


def epochs(dataset, numbers=(0, 1, 2), workers=0, rank=0, world=1) -> list[list[str]]:
    """Digests of the batches of each epoch, from one loader as a run has it."""
    sampler = EpochBatchSampler(range(N), 6, seed=3, rank=rank, world_size=world)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    result = []
    for number in numbers:
        sampler.set_epoch(number)
        result.append([digest(batch) for batch in loader])
    return result


def test_batches_do_not_depend_on_workers_or_on_where_a_run_resumes(dataset):
    alone = epochs(dataset)
    assert epochs(dataset, workers=1) == alone
    assert epochs(dataset, workers=2) == alone
    assert epochs(dataset, numbers=(2,), workers=2) == alone[2:]  # resumed at epoch 2
    assert len({one for epoch in alone for one in epoch}) == 12  # no epoch repeats another


def test_two_ranks_see_together_what_one_sees(dataset):
    def samples(rank, world):
        sampler = EpochBatchSampler(range(N), 6, seed=3, rank=rank, world_size=world)
        sampler.set_epoch(1)
        return [
            {int(i): image for i, image in zip(batch["index"], batch["image"], strict=True)}
            for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
        ]

    for whole, one, two in zip(samples(0, 1), samples(0, 2), samples(1, 2), strict=True):
        assert whole.keys() == one.keys() | two.keys()
        assert not one.keys() & two.keys()
        for index, image in (one | two).items():
            assert torch.equal(image, whole[index])


def test_workers_augment_differently(dataset):
    """Of one image, too: albumentations' own seeding makes the workers repeat each other."""
    same = dataset.images[0]

    class One:
        def __getitem__(self, row):
            return same

    dataset.images = One()
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=dataset.collate, multiprocessing_context="fork"
    )
    images = torch.cat([batch["image"] for batch in loader])
    assert len({image.numpy().tobytes() for image in images}) == N


def test_an_item_is_its_batch_and_a_image_its_prediction_input(table):
    for p in (P, Preprocessing(image_size=6, fit="crop", crop_fraction=0.75), P.with_channels(1)):
        for directory in ("auto", "off"):
            dataset = ImageDataset(table.targets(), ImageCache.build(table, p, directory), p)
            batch = dataset.collate(dataset.__getitems__([4, 0]))
            assert batch["image"].shape == (2, p.in_channels, p.image_size, p.image_size)
            assert batch["image"].is_contiguous()
            assert batch["index"].tolist() == [4, 0]
            item = dataset[(7, 4)]
            assert torch.equal(item["image"], batch["image"][0])
            assert item["index"] == 4
            from finetune.data.decoding.images import read_image

            assert torch.equal(item["image"], p(read_image(table.file(4))))
            stacked = dataset.collate([dataset[4], dataset[0]])
            assert all(torch.equal(stacked[key], batch[key]) for key in batch)


def test_unknown_targets_stay_unknown(table):
    targets = np.full((N, 2), np.nan)
    targets[1] = [1, 0.25]
    dataset = ImageDataset(targets, ImageCache.build(table, P), P)
    batch = dataset.__getitems__([0, 1])
    assert batch["target"].dtype == torch.float32
    assert torch.isnan(batch["target"][0]).all()
    assert batch["target"][1].tolist() == [1, 0.25]
    assert len(dataset) == N


def test_evaluation_loader(table):
    dataset = ImageDataset(table.targets(), ImageCache.build(table, P), P)
    load = partial(DataLoader, dataset, collate_fn=dataset.collate)
    batches = list(load(batch_sampler=EvalBatchSampler([3, 5, 8], 2)))
    assert [batch["index"].tolist() for batch in batches] == [[3, 5], [8]]
    assert torch.equal(batches[0]["target"][:, 0], torch.tensor([1.0, 1.0]))
