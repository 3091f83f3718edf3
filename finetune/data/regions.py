"""Masks of regions: what the pixels mean, and where the mask of an image stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data.masks import decode_counts, decode_rle, fill_polygons, read_mask, read_region, stored_values
from finetune.errors import BadImage, FinetuneError

BACKGROUND = "background"
"""The first of regions that exclude each other."""
IGNORED = 255
"""Pixel value that is left out, where regions exclude each other."""
MAX_OVERLAPPING = 8
"""Regions that a bit field of 8 bits holds."""


@dataclass(frozen=True)
class Regions:
    """The regions that masks mark, and how a pixel of a mask (uint8) says which.

    Exclusive: pixel value i is region i, the first is background, 255 is left out of loss and scores. Overlapping: a
    bit field, bit k is set where region k is; there is no background.

    Raises:
        FinetuneError: names that are blank or not distinct, no background or one too many, more regions than fit.
    """

    names: list[str]
    """Of the regions, in the order of the network's outputs."""
    overlapping: bool = False
    """Whether a pixel may be in several regions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", list(self.names))
        names, most = self.names, MAX_OVERLAPPING if self.overlapping else IGNORED
        if any(not isinstance(name, str) or not name.strip() for name in names) or len(set(names)) < len(names):
            raise FinetuneError(f"regions must be distinct names, not {names}.")
        if self.overlapping and BACKGROUND in names:
            raise FinetuneError(f"regions={names}: regions that overlap have no {BACKGROUND}; leave it out.")
        if not self.overlapping and names[:1] != [BACKGROUND]:
            raise FinetuneError(
                f"regions={names}: the first of regions that exclude each other must be {BACKGROUND}, which is "
                "pixel value 0."
            )
        if not (1 if self.overlapping else 2) <= len(names) <= most:
            few = "no region" if len(names) < 2 else f"{len(names)} regions"
            way = " Choose some of them, or take regions that exclude each other." if self.overlapping and names else ""
            raise FinetuneError(
                f"regions={names[:12]}: there is {few}; masks of regions that "
                f"{'overlap' if self.overlapping else 'exclude each other'} take up to {most}.{way}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def bits(self, mask: np.ndarray) -> np.ndarray:  # (..., H, W) -> bool (..., K, H, W)
        """Where each region is; nowhere where a pixel is ignored."""
        numbers = np.arange(len(self), dtype=np.uint8)[:, None, None]
        mask = mask[..., None, :, :]
        return (mask >> numbers & 1).astype(bool) if self.overlapping else mask == numbers

    def wrong_values(self, mask: np.ndarray) -> list[int]:
        """The values of a mask (H, W) that are no region and not ignored."""
        most = 1 << len(self) if self.overlapping else len(self)
        return [v for v in stored_values(mask) if v >= most and (self.overlapping or v != IGNORED)]

    def content(self) -> str:
        """What the table's hash covers."""
        return "\x1f".join([str(self.overlapping), *self.names])


@dataclass(frozen=True)
class Layer:
    """The pixels of a single region in an image: exactly one of path, rle, counts and polygons."""

    path: str | None = None
    """An image file, or an array in a container: 0 and one other value."""
    rle: str | None = None
    """`start length start length ...`: see decode_rle."""
    counts: str | tuple[int, ...] | None = None
    """COCO's RLE: see decode_counts."""
    polygons: tuple[tuple[float, ...], ...] | None = None
    """COCO's polygons: see fill_polygons."""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.path, self.rle, self.counts, self.polygons)) != 1:
            raise FinetuneError(f"{self}: a layer of a mask needs one of path, rle, counts and polygons.")

    @property
    def marked(self) -> bool:
        """Whether any pixel is marked; a file counts as marked, unread."""
        return bool(self.rle.strip()) if self.rle is not None else self.polygons != ()

    def read(self, root: Path, size: tuple[int, int] | None) -> np.ndarray:  # -> bool (H, W)
        """Its pixels; `size` is the image's height and width, which only a file does without."""
        if self.path is not None:
            return read_region(root / self.path)
        if size is None:
            raise FinetuneError("a mask that is no file needs size=(height, width) of its image.")
        if self.rle is not None:
            return decode_rle(self.rle, *size) > 0
        if self.counts is not None:
            return decode_counts(self.counts, *size)
        return fill_polygons(self.polygons or (), *size)


@dataclass(frozen=True)
class MaskFile:
    """The mask of one image, decoded when asked for: an image file, runs of pixels (RLE), or layers of single regions.

    Raises:
        FinetuneError: not exactly one of path, rle and layers.
    """

    path: str | None = None
    """Relative to the table's root and written with /; gray, palette or 1-bit. The pixel values are the regions' (see
    Regions), or what `values` makes them. FILE.npz::KEY/INDEX is an array in a container."""
    rle: str | None = None
    """`start length start length ...`: pixels are numbered from 1, down the columns first. Blank: nothing is marked."""
    size: tuple[int, int] | None = None
    """Height and width of the stored image, for all but files; None: the image has them."""
    values: tuple[tuple[int, int], ...] | None = None
    """With `path`: pairs of a value in the file and what the mask has in its place. None: they are the same."""
    layers: tuple[tuple[int, Layer], ...] | None = None
    """Number of a region among Regions.names, and its pixels; several of one region are joined."""
    unknown: tuple[int, ...] = ()
    """With `layers`: numbers of the regions of which nothing is known in this image."""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.path, self.rle, self.layers)) != 1:
            raise FinetuneError(f"{self}: a mask needs either path, or rle, or layers.")

    @property
    def paths(self) -> list[str]:
        """All files that it is read from."""
        files = [self.path, *(layer.path for _, layer in self.layers or ())]
        return [path for path in files if path is not None]

    def moved(self, folder: str) -> MaskFile:
        """The same where the root is the parent of `folder`."""
        if self.path is not None:
            return replace(self, path=f"{folder}/{self.path}")
        if self.layers is None:
            return self
        layers = (
            (number, layer if layer.path is None else replace(layer, path=f"{folder}/{layer.path}"))
            for number, layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def known(self, regions: Regions) -> np.ndarray:  # -> bool (K,)
        """Of which regions something is known; of regions that exclude each other all or none."""
        known = np.array([number not in self.unknown for number in range(len(regions))])
        return known if regions.overlapping else known & known.all()

    def read(
        self, root: Path, regions: Regions | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:  # -> uint8 (H, W)
        """The mask's pixels. `size`: height and width of the image; `regions` is needed for layers.

        Raises:
            BadImage: a file cannot be read, is no mask of 8 bits or fewer, has another size than the image, or holds
                values that are no region.
            FinetuneError: runs or polygons that do not fit the image, or regions that exclude each other and overlap.
        """
        sides = self.size or size
        if self.path is not None:
            file = root / self.path
            return self._checked(file, _mapped(file, read_mask(file), self.values), regions, size)
        if self.rle is not None:
            mask = Layer(rle=self.rle).read(root, sides).astype(np.uint8)  # of the first region, either way
        else:
            if regions is None:
                raise FinetuneError("a mask of layers can only be read with its regions.")
            mask = self._joined(root, regions, sides)
        if size is not None and mask.shape != size:
            raise FinetuneError(f"its size is {_by(mask.shape)} pixels, the image has {_by(size)}")
        return mask

    def _joined(self, root: Path, regions: Regions, size: tuple[int, int] | None) -> np.ndarray:
        mask = None if size is None else np.zeros(size, np.uint8)
        for number, layer in self.layers or ():
            pixels = layer.read(root, size)
            if mask is None:
                mask = np.zeros(pixels.shape, np.uint8)
            if pixels.shape != mask.shape:
                where = root / layer.path if layer.path is not None else Path(regions.names[number])
                raise BadImage(where, f"has {_by(pixels.shape)} pixels, the image {_by(mask.shape)}")
            if regions.overlapping:
                mask |= np.uint8(1 << number) * pixels
                continue
            if shared := int(np.count_nonzero(both := pixels & (mask > 0) & (mask != number))):
                other = regions.names[int(mask[both][0])]
                raise FinetuneError(
                    f"{other} and {regions.names[number]} share {shared:,} pixel(s), but the regions exclude each "
                    "other (data.overlapping=true lets them overlap)"
                )
            mask[pixels] = number
        if mask is None:
            raise FinetuneError("a mask without layers needs size=(height, width) of its image.")
        return mask

    def _checked(
        self, file: Path, mask: np.ndarray, regions: Regions | None, size: tuple[int, int] | None
    ) -> np.ndarray:
        if size is not None and mask.shape != size:
            raise BadImage(file, f"has {_by(mask.shape)} pixels, the image {_by(size)}")
        if regions is not None and (wrong := regions.wrong_values(mask)):
            raise BadImage(file, f"holds {_some(wrong)}, which is no region of {', '.join(regions.names)}")
        return mask

    def content(self) -> str:
        """What the table's hash covers; of a file its path, as of images."""
        text = f"mask\x1d{self.path or ''}\x1d{self.rle or ''}\x1d{self.size or ''}"
        more = (self.values, self.layers, self.unknown)
        return text if more == (None, None, ()) else f"{text}\x1d{more}"


def _mapped(file: Path, mask: np.ndarray, values: tuple[tuple[int, int], ...] | None) -> np.ndarray:
    """The mask with the values that `values` gives for those in the file."""
    if values is None:
        return mask
    table = dict(values)
    if wrong := [value for value in stored_values(mask) if value not in table]:
        raise BadImage(file, f"holds {_some(wrong)}, which data.regions names no region for; it has {_some(table)}")
    return np.array([table.get(value, 0) for value in range(256)], np.uint8)[mask]


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _some(values: Iterable[int]) -> str:
    values = list(values)
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
