"""Planted copies are found and strangers are not: the recall and precision of the search for near duplicates."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.skin import lesion
from finetune.data.audit import near_duplicates as near
from finetune.data.audit.near_duplicates import near_duplicates

CHANGES = ("jpeg", "resized", "brighter", "cropped", "cut at a corner")


class InMemory(list):
    """Images in a list, as a cache gives them."""

    def digests(self) -> list[str]:
        return [str(hash(image.tobytes())) for image in self]


def scenes(count: int, size: int = 128, seed: int = 0) -> list[np.ndarray]:
    """Images that share their large shadows, as X-rays do, and differ in what lies within."""
    random = np.random.default_rng(seed)
    shadow = gaussian_filter(random.standard_normal((size, size)), size / 8)
    result = []
    for _ in range(count):
        detail = gaussian_filter(random.standard_normal((size, size)), 3)
        image = 2 * shadow / shadow.std() + detail / detail.std() + 0.1 * random.standard_normal((size, size))
        result.append(np.clip(128 + 30 * image, 0, 255).astype(np.uint8))
    return result


def changed(pixels: np.ndarray, change: str) -> np.ndarray:
    image = Image.fromarray(pixels)
    width, height = image.size
    match change:
        case "jpeg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=60)
            image = Image.open(file)
        case "resized":
            image = image.resize((round(0.9 * width), round(0.9 * height)))
        case "brighter":
            image = image.point(lambda value: min(255, value + 25))
        case "cropped":
            x, y = round(0.03 * width), round(0.03 * height)
            image = image.crop((x, y, width - x, height - y))
        case "cut at a corner":
            image = image.crop((0, 0, round(0.97 * width), round(0.97 * height)))
    return np.asarray(image)


def stored(images: list[np.ndarray], size: int = 96) -> InMemory:
    return InMemory(np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BILINEAR)) for p in images)


def test_every_planted_copy_is_found_and_nothing_else():
    originals = scenes(200)
    copies = [changed(originals[i], CHANGES[i % len(CHANGES)]) for i in range(50)]
    images = stored(originals + copies)
    result = near_duplicates(images, images.digests())
    assert [(pair.first, pair.second) for pair in result] == [(i, 200 + i) for i in range(50)]
    assert all(pair.alike >= near.VERY_ALIKE and pair.certainty == "certain" for pair in result)


def test_real_x_rays(shared_data):
    files = sorted((shared_data / "kermany" / "images").rglob("*.jpeg"))[::8]
    originals = [np.asarray(Image.open(file).convert("L")) for file in files]
    copies = [changed(originals[i], CHANGES[i % len(CHANGES)]) for i in range(100)]
    images = stored(originals + copies)
    pairs = near_duplicates(images, images.digests())
    certain = {(pair.first, pair.second) for pair in pairs if pair.certainty == "certain"}
    planted = {(i, len(originals) + i) for i in range(100)}
    assert len(planted - certain) <= 1
    assert len(certain - planted) <= 1
    assert len(pairs) <= len(certain) + 1


def test_different_moles_are_no_copies():
    """Pairs of lesions that the edges alone take for copies: a soft dark spot in the middle of plain skin."""
    twins = [(39, 63), (195, 247), (207, 334), (283, 403)]
    moles = [lesion(number, plain=True) for pair in twins for number in pair]
    textured = [lesion(number) for number in range(8)]
    copies = [changed(mole, CHANGES[i % len(CHANGES)]) for i, mole in enumerate(moles + textured)]
    images = stored(moles + textured + copies)
    edges = near.Edges(images)
    assert all(edges.agree(i, i + 1) >= 0.93 for i in range(0, len(moles), 2))
    pairs = {(pair.first, pair.second): pair.certainty for pair in near_duplicates(images, images.digests())}
    planted = {(i, 16 + i) for i in range(16)}
    certain = {pair for pair, certainty in pairs.items() if certainty == "certain"}
    assert certain <= planted <= pairs.keys()
    assert {(i, 16 + i) for i in range(8, 16)} <= certain  # texture and hairs are proof


def test_flat_images_are_no_certain_copies():
    """Constant, nearly constant, a slow gradient, one bright pixel: nothing in them is proof."""
    random = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, 96)
    flat = [np.full((96, 96), 100 + i) for i in range(6)]
    flat += [120 + random.uniform(5, 30) * ramp + random.normal(0, 0.3, (96, 96)) for _ in range(6)]
    flat += [120 - random.uniform(10, 60) * (ramp**2 + ramp[:, None] ** 2) for _ in range(6)]
    for i in range(6):
        flat.append(np.full((96, 96), 90))
        flat[-1][10 * i + 3, 50] = 130
    images = InMemory(image.round().clip(0, 255).astype(np.uint8) for image in flat)
    assert not [pair for pair in near_duplicates(images, map(str, range(24))) if pair.certainty == "certain"]


def test_equal_blank_and_unreadable_images_are_left_to_others():
    image = scenes(1)[0]
    images = InMemory([image, image, np.zeros_like(image), np.full_like(image, 7), image])
    assert near_duplicates(images, ["a", "a", "b", "c", ""]) == []
    assert near_duplicates(InMemory(), []) == []
    assert near_duplicates(InMemory([image]), ["a"]) == []


def test_colour_images_and_small_sets():
    one, other = (np.stack([p] * 3, axis=-1) for p in scenes(2))
    images = InMemory([one, other, np.clip(one.astype(int) + 9, 0, 255).astype(np.uint8)])
    assert [(p.first, p.second) for p in near_duplicates(images, "abc")] == [(0, 2)]


@pytest.mark.parametrize("count", [500, 4000])
def test_candidates_grow_with_the_number_of_images_and_not_with_its_square(count):
    random = np.random.default_rng(0)
    features = random.standard_normal((count, near.FEATURES)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[-10:] = features[:10]
    result = list(near.candidates(features, random))
    assert set(zip(range(10), range(count - 10, count), strict=True)) <= set(result)
    assert len(result) < 12
