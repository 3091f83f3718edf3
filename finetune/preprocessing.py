"""Everything between a decoded image and the network: resize, crop, normalise.

One immutable value that is stored in the model file, so that validation, predict and other programs do the same.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from finetune.errors import FinetuneError
from finetune.placement import PlacedBoxes, Placement

if TYPE_CHECKING:  # torch is imported where tensors are made, so decoding processes stay light
    import torch

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FITS = ("squash", "crop", "pad")
LARGEST_SIDE = 8192
"""Pixels; one image of this side takes 800 MB as a network's input."""

# An image more than this many times longer than wide is cut to it before `fit=crop` enlarges it: a 1 x 1,000,000
# strip would need gigabytes. The rest lies far outside the centre square.
LONGEST_ASPECT = 64


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input. Plain values only; `to_dict` and `from_dict` round-trip.

    Resizing is Pillow's antialiased filter on uint8, sizes and offsets are rounded as timm and torchvision do:
    `fit="crop"` equals timm's evaluation transform with crop_pct = `crop_fraction`, to the last bit.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}  # read from a file, an unknown key is an error

    image_size: int = 224
    """Side of the square the network sees, in pixels."""
    in_channels: int = 3
    """1 or 3; gray images are repeated to 3, coloured ones are reduced to 1 by luminance."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of images scaled to [0, 1], one per channel."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of images scaled to [0, 1], one per channel."""
    interpolation: str = "bilinear"
    """bilinear or bicubic, both antialiased."""
    fit: str = "squash"
    """squash: resize to the square; crop: shorter side, then the centre; pad: longer side, then a black border."""
    crop_fraction: float = 1.0
    """With fit=crop the fraction of the shorter side that stays (timm's crop_pct)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats("mean", self.mean))
        object.__setattr__(self, "std", _floats("std", self.std))
        if isinstance(self.image_size, bool) or not isinstance(self.image_size, int) or self.image_size < 1:
            raise FinetuneError(f"image_size={self.image_size!r} must be a whole number of pixels, 1 or more.")
        if self.in_channels not in (1, 3):
            raise FinetuneError(f"in_channels={self.in_channels!r} must be 1 or 3.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_channels:
                raise FinetuneError(
                    f"{name}={getattr(self, name)} must have {self.in_channels} value(s), one per channel "
                    f"(in_channels={self.in_channels}); with_channels() averages them."
                )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise FinetuneError(f"mean={self.mean} must be finite and std={self.std} finite and above 0.")
        if self.interpolation not in FILTERS:
            raise FinetuneError(f"interpolation={self.interpolation!r}: choose from {', '.join(FILTERS)}.")
        if self.fit not in FITS:
            raise FinetuneError(f"fit={self.fit!r}: choose from {', '.join(FITS)}.")
        if not isinstance(self.crop_fraction, float | int) or not 0 < self.crop_fraction <= 1:
            raise FinetuneError(f"crop_fraction={self.crop_fraction!r} must lie above 0 and at most at 1.")
        if self.image_size > LARGEST_SIDE * min(1, self.crop_fraction):
            raise FinetuneError(
                f"image_size={self.image_size} with crop_fraction={self.crop_fraction} needs images of more than "
                f"{LARGEST_SIDE} pixels a side."
            )
        if self.fit != "crop" and self.crop_fraction != 1.0:
            raise FinetuneError(f"crop_fraction={self.crop_fraction} is for fit=crop only, not fit={self.fit}.")

    @property
    def stored_size(self) -> int:
        """Side of the resized square that is cached; `crop` cuts `image_size` out of its centre."""
        return math.floor(self.image_size / self.crop_fraction)  # floor: as timm, 224 / 0.95 -> 235

    @property
    def min_decode_side(self) -> int:
        """Shorter side, in pixels, that a JPEG needs to be decoded at: three times the stored size is enough for
        the resizing filter, and differs from full size by about one gray level."""
        return 3 * self.stored_size

    @property
    def crop_start(self) -> int:
        """First row and column of the cached square that the network sees; 0 unless fit=crop."""
        return _offset(self.stored_size, self.image_size)

    def cached_placement(self, height: int, width: int) -> Placement:
        """Where an image of that size lies in the square that is cached, of side stored_size."""
        size = self.stored_size
        if min(height, width) < 1:
            raise FinetuneError(f"an image of {height} x {width} pixels is empty.")
        stored, whole = (height, width), (0, 0, height, width)
        if self.fit == "squash":
            return Placement(stored, whole, (size, size), 0, 0, size)
        if self.fit == "pad":
            scale = size / max(height, width)
            inner_h, inner_w = max(1, round(height * scale)), max(1, round(width * scale))
            return Placement(stored, whole, (inner_h, inner_w), (size - inner_h) // 2, (size - inner_w) // 2, size)
        # crop: a strip is cut, the shorter side is scaled, then the centre is kept
        part_h, part_w = min(height, LONGEST_ASPECT * width), min(width, LONGEST_ASPECT * height)
        part = ((height - part_h) // 2, (width - part_w) // 2, part_h, part_w)
        if part_h <= part_w:
            scaled_h, scaled_w = size, int(size * part_w / part_h)  # int(): as torchvision's Resize
        else:
            scaled_h, scaled_w = int(size * part_h / part_w), size
        # Cutting here and again in `crop` must give the same pixels as one cut of the long image.
        top, left = (self.crop_start - _offset(length, self.image_size) for length in (scaled_h, scaled_w))
        return Placement(stored, part, (scaled_h, scaled_w), top, left, size)

    def placement(self, height: int, width: int) -> Placement:
        """Where an image of that size lies in the square that the network sees, after `resize` and `crop`."""
        return self.cached_placement(height, width).inner(self.crop_start, self.image_size)

    def boxes_to_input(self, boxes: np.ndarray, height: int, width: int) -> PlacedBoxes:  # (N, 4)
        """Boxes (left, top, right, bottom) in pixels of a stored image -> in pixels of the network's input."""
        return self.placement(height, width).boxes_to_square(boxes)

    def mask_to_input(self, mask: np.ndarray) -> np.ndarray:  # (H, W) -> (image_size, image_size)
        """A mask of the stored image as the network's input shows it."""
        return self.placement(*mask.shape[:2]).mask_to_square(mask)

    def resize(self, image: np.ndarray) -> np.ndarray:  # (H, W[, 3]) -> (S, S[, 3]), S = stored_size
        """Resize a uint8 image to the square that is cached."""
        image = check_image(image)
        placement = self.cached_placement(*image.shape[:2])
        return placement.put(self._scale(placement.cut(image), *placement.scaled))

    def crop(self, image: np.ndarray) -> np.ndarray:  # (S, S[, 3]) -> (image_size, image_size[, 3])
        """Cut the centre out of a resized image; nothing to do unless fit=crop."""
        if image.shape[:2] != (self.stored_size, self.stored_size):
            raise FinetuneError(f"crop() takes a resized image of side {self.stored_size}, not {image.shape}.")
        start, side = self.crop_start, self.image_size
        return image[start : start + side, start : start + side]

    def to_tensor(self, image: np.ndarray) -> torch.Tensor:  # (S, S[, 3]) -> (in_channels, S, S), S = image_size
        """Normalise one uint8 image of side image_size; gray is repeated, RGB reduced, as in_channels asks."""
        return self.batch_to_tensor(check_image(image)[None])[0]

    def batch_to_tensor(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Normalise a whole uint8 batch at once: (N, S, S[, 3]) -> (N, in_channels, S, S) float32, on its device."""
        import torch

        if isinstance(images, np.ndarray):
            images = np.require(images, requirements=["C", "W"])  # copies only what torch could not share
        batch = torch.as_tensor(images)
        side = self.image_size
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) not in ((side, side), (side, side, 3)):
            raise FinetuneError(
                f"expected uint8 images (N, {side}, {side}) or (N, {side}, {side}, 3), "
                f"got {batch.dtype} {tuple(batch.shape)}; resize() and crop() come first."
            )
        return self.normalise(batch)

    def normalise(self, images: torch.Tensor, *, at_once: bool | None = None) -> torch.Tensor:
        """uint8 (N, H, W[, 3]) of any side -> (N, in_channels, H, W) float32 on the device of the images.

        Every number passes the same three operations on every device: divided by 255, minus mean, divided by std.

        Args:
            at_once: all images in each operation, into a channels-last batch; by default where the device is no CPU.
        """
        import torch

        if images.ndim == 4 and self.in_channels == 1:
            # ITU-R 601 luminance in whole numbers, as Pillow's convert("L"); gray stays what it is.
            red, green, blue = images.int().unbind(-1)
            images = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)  # (N, H, W)
        channels = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)  # (N, 1 or 3, H, W)
        shape = (len(images), self.in_channels, *channels.shape[2:])
        white, mean, std = _constants(self.mean, self.std, images.device)
        if at_once if at_once is not None else images.device.type != "cpu":
            out = torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last)
            return out.copy_(channels).div_(white).sub_(mean).div_(std)  # a gray image spreads over 3 channels here
        out = torch.empty(shape, dtype=torch.float32, device=images.device)
        for image, tensor in zip(channels, out, strict=True):  # they stay in the processor's cache: twice as fast
            tensor.copy_(image).div_(white).sub_(mean).div_(std)
        return out

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Decoded image to network input: exactly what validation, test and predict do."""
        return self.to_tensor(self.crop(self.resize(image)))

    def with_channels(self, in_channels: int) -> Preprocessing:
        """The same for another number of channels: mean and std are averaged to 1 or repeated to 3."""
        if in_channels == self.in_channels:
            return self
        if in_channels == 1:
            return replace(self, in_channels=1, mean=(sum(self.mean) / 3,), std=(sum(self.std) / 3,))
        return replace(self, in_channels=in_channels, mean=self.mean * 3, std=self.std * 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON and YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of to_dict; an unknown key is an error, a missing one takes its default."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise FinetuneError(f"preprocessing has unknown keys {unknown}; this version knows {known}.")
        return cls(**values)

    def _scale(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image.copy()
        return np.array(Image.fromarray(image).resize((width, height), FILTERS[self.interpolation]))


def check_image(image: np.ndarray) -> np.ndarray:
    """The image itself when it is uint8 (H, W) or (H, W, 3) and not empty, else a FinetuneError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise FinetuneError(f"an image must be a uint8 array, not {kind}.")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise FinetuneError(f"an image must have shape (H, W) or (H, W, 3), not {image.shape}.")
    return np.ascontiguousarray(image)


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """255, mean and std as tensors on the device, made once: a copy to a GPU would wait for it in every batch.

    255 is a tensor too: by a number, torch's GPU kernels multiply with 1 / 255, which differs in the last bit.
    """
    import torch

    with torch.inference_mode(False):  # what is made in inference mode could not be used outside of it
        white = torch.tensor(255.0, device=device)
        per_channel = torch.tensor([mean, std], dtype=torch.float32, device=device)[:, :, None, None]  # (2, C, 1, 1)
        return white, per_channel[0], per_channel[1]


def _floats(name: str, values: Any) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise FinetuneError(f"{name}={values!r} must be a list of numbers, one per channel.") from None


def _offset(length: int, size: int) -> int:
    return round((length - size) / 2)  # half to even, as torchvision's center_crop
