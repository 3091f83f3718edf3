import json

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise


def plain(size: int, **options) -> Preprocessing:
    """Pixel values divided by 255, so that answers can be read off."""
    channels = options.get("in_channels", 3)
    return Preprocessing(image_size=size, mean=(0.0,) * channels, std=(1.0,) * channels, **options)


def test_gray_is_repeated_and_normalised():
    p = Preprocessing(image_size=2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    out = p(np.array([[0, 255], [51, 102]], np.uint8))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    torch.testing.assert_close(out[1], torch.tensor([[-1.0, 1.0], [-0.6, -0.2]]))
    torch.testing.assert_close(out[2], torch.tensor([[-0.5, 0.0], [-0.4, -0.3]]))


def test_colour_becomes_one_channel_by_luminance():
    p = plain(1, in_channels=1)
    for colour, gray in [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((9, 9, 9), 9)]:
        out = p(np.array([[colour]], np.uint8))
        assert out.shape == (1, 1, 1)
        assert round(float(out) * 255) == gray == Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))


def test_squash_of_two_by_four_is_the_mean_of_neighbours():
    image = np.array([[0, 100, 20, 40], [0, 100, 20, 40]], np.uint8)
    assert plain(2).resize(image)[0, 0] in range(30, 71)  # the antialiased triangle reaches beyond two pixels
    np.testing.assert_array_equal(plain(2).resize(np.full((50, 70), 7, np.uint8)), np.full((2, 2), 7))


def test_pad_keeps_the_aspect_on_black():
    out = plain(4, fit="pad").resize(np.full((10, 20), 200, np.uint8))
    np.testing.assert_array_equal(out, [[0] * 4, [200] * 4, [200] * 4, [0] * 4])
    assert plain(4, fit="pad").resize(np.full((1, 1000, 3), 9, np.uint8)).max() == 9  # never vanishes


def test_crop_takes_the_centre():
    p = plain(2, fit="crop", crop_fraction=0.5)
    assert p.stored_size == 4
    image = np.zeros((4, 8), np.uint8)
    image[1:3, 3:5] = 255
    stored = p.resize(image)
    assert stored.shape == (4, 4)
    np.testing.assert_array_equal(p.crop(stored), np.full((2, 2), 255))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(40, 61, 3), (61, 40, 3), (32, 33, 3), (5, 3, 3)])
def test_equals_the_evaluation_transform_of_timm(interpolation, fraction, shape):
    create_transform = pytest.importorskip("timm.data").create_transform
    image = noise(*shape)
    p = Preprocessing(image_size=32, fit="crop", crop_fraction=fraction, interpolation=interpolation)
    theirs = create_transform(32, interpolation=interpolation, crop_pct=fraction, mean=p.mean, std=p.std)
    torch.testing.assert_close(p(image), theirs(Image.fromarray(image)), rtol=0, atol=0)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1, 3), (2, 2, 3), (700, 5)])
def test_every_shape_fits(fit, shape):
    p = Preprocessing(image_size=8, fit=fit, crop_fraction=0.8 if fit == "crop" else 1.0)
    stored = p.resize(noise(*shape))
    assert stored.shape[:2] == (p.stored_size, p.stored_size)
    assert p(noise(*shape)).shape == (3, 8, 8)


def test_resizing_leaves_the_image_alone_and_gives_one_of_its_own():
    image = noise(8, 8)
    image.flags.writeable = False
    stored = plain(8).resize(image)
    stored[:] = 0
    assert image.any()
    plain(8).to_tensor(image)  # a read-only image raises no warning


def test_batch_equals_one_by_one():
    p = Preprocessing(image_size=6)
    for shape in ((5, 6, 6), (5, 6, 6, 3)):
        batch = noise(*shape)
        torch.testing.assert_close(
            p.batch_to_tensor(batch), torch.stack([p.to_tensor(one) for one in batch]), rtol=0, atol=0
        )


@pytest.mark.parametrize("p", [Preprocessing(image_size=6), Preprocessing(image_size=6).with_channels(1)])
@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 6, 3)])
def test_a_whole_batch_at_once_has_the_same_bits(p, shape):
    """As a GPU normalises it: every number of an image, spread over all 256 values."""
    batch = torch.from_numpy(noise(*shape))
    batch.view(-1)[:150] = torch.arange(0, 255, 1.7).to(torch.uint8)
    at_once = p.normalise(batch, at_once=True)
    assert torch.equal(at_once, p.normalise(batch, at_once=False))
    assert torch.equal(at_once, p.batch_to_tensor(batch))
    assert at_once.is_contiguous(memory_format=torch.channels_last)
    white = np.float32(255)
    if p.in_channels == 3 and batch.ndim == 4:
        wanted = (batch.numpy().astype(np.float32) / white - np.float32(p.mean)) / np.float32(p.std)
        assert np.array_equal(at_once.permute(0, 2, 3, 1).numpy(), wanted)


def test_travels_as_plain_values():
    p = Preprocessing(image_size=64, fit="crop", crop_fraction=0.9, interpolation="bicubic").with_channels(1)
    assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert Preprocessing.from_dict({}) == Preprocessing()
    with pytest.raises(FinetuneError, match="unknown keys \\['size'\\]"):
        Preprocessing.from_dict({"size": 3})


def test_channels_are_averaged_and_repeated():
    one = Preprocessing(mean=(0.1, 0.2, 0.6), std=(0.1, 0.2, 0.3)).with_channels(1)
    assert one.mean == pytest.approx((0.3,))
    assert one.std == pytest.approx((0.2,))
    assert one.with_channels(3).mean == pytest.approx((0.3,) * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": 2.5}, "image_size=2.5"),
        ({"in_channels": 2}, "in_channels=2"),
        ({"in_channels": 1}, "mean="),
        ({"mean": (0.5, "x", 0.5)}, "mean="),
        ({"std": (0.2, 0.2, 0.0)}, "std="),
        ({"interpolation": "nearest"}, "bilinear, bicubic"),
        ({"fit": "stretch"}, "squash, crop, pad"),
        ({"fit": "crop", "crop_fraction": 0}, "crop_fraction=0"),
        ({"crop_fraction": 0.9}, "fit=crop only"),
    ],
)
def test_contradictions_fail_at_once(options, message):
    with pytest.raises(FinetuneError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8), np.zeros(4, np.uint8), "x"]
)
def test_only_uint8_gray_or_rgb_is_taken(image):
    with pytest.raises(FinetuneError, match="an image must"):
        Preprocessing(image_size=2).resize(image)


def test_sizes_are_checked_before_the_network_sees_them():
    with pytest.raises(FinetuneError, match=r"\(N, 4, 4\)"):
        Preprocessing(image_size=4).to_tensor(noise(5, 5))
    with pytest.raises(FinetuneError, match="side 4"):
        Preprocessing(image_size=4).crop(noise(5, 5))
