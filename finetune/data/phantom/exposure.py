"""From millimetres of tissue to the grey values of a film: Beer-Lambert, scatter, photon noise, display curve."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from finetune.data.phantom.anatomy import BONE, LUNG, TISSUE, Chest
from finetune.data.phantom.findings import Lungs
from finetune.data.phantom.grid import Field


@dataclass(frozen=True)
class Exposure:
    """How one image was taken and shown; independent of what it shows."""

    scatter: float
    """Scattered over direct radiation behind the chest (0.3 with a grid, above 1 without)."""
    photons: float
    """Photons per pixel before the patient."""
    unsharpness: float
    """Blur of focus, motion and detector, mm."""
    tilt: tuple[float, float]
    """Fall of the beam from the centre to the image's edge, in nepers (heel effect, a grid that stands askew)."""
    detail: float
    """Enhancement of structures below 25 mm by the machine's own processing."""
    dark: float
    """Grey value (0 to 1) that the healthy lung is shown at."""
    bright: float
    """Grey value that the mediastinum is shown at."""
    gamma: float
    """Curve of the display: above 1 darkens the middle."""
    marker: str
    """Lead letter in an upper corner, or nothing."""
    border: tuple[float, float]
    """Share of the image that the collimator covers at the sides, and at top and bottom."""


def attenuation(lungs: Lungs, air: float) -> Field:
    """The line integral of each ray: sum of thickness times linear attenuation; `air` is the lung's own density."""
    solid = np.maximum(lungs.chest.body - lungs.lung - lungs.gas, 0)
    total = TISSUE * solid + LUNG * air * lungs.lung + BONE * lungs.bone + (TISSUE - LUNG) * lungs.vessels
    return total.astype(np.float32)


def expose(
    total: Field, reference: Field, chest: Chest, exposure: Exposure, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The 8-bit image, bone bright (MONOCHROME2).

    The display is set by `reference`, the same chest without its findings: a finding changes grey values where it is
    and nowhere else.
    """
    density = _film(total, chest, exposure, rng)
    across = np.linspace(-1, 1, total.shape[0], dtype=np.float32)
    density = density + np.float32(exposure.tilt[0]) * across + np.float32(exposure.tilt[1]) * across[:, None]
    density = density + np.float32(exposure.detail) * (density - _smooth(density, 25 / chest.grid.field))
    coarse = _film(reference[::4, ::4], chest, exposure, None)
    lung, body = chest.lung_mask[::4, ::4], reference[::4, ::4] > 1.0
    low, high = np.quantile(coarse[lung], 0.3), np.quantile(coarse[body & ~lung], 0.7)
    shown = (density - low) / np.float32(max(float(high - low), 0.3)) * (
        exposure.bright - exposure.dark
    ) + exposure.dark
    # a film's toe and shoulder: straight in the middle, never clipped hard
    shown = np.where(shown > 0.8, 0.8 + 0.2 * np.tanh((shown - 0.8) / 0.2), shown)
    shown = np.where(shown < 0.12, 0.12 * np.exp((shown - 0.12) / 0.12), shown)
    image = np.clip(shown, 0, 1) ** np.float32(exposure.gamma) * 255
    return _finish(np.round(image).astype(np.uint8), exposure)


def _film(total: Field, chest: Chest, exposure: Exposure, rng: np.random.Generator | None) -> Field:
    """Minus the logarithm of what reaches the detector."""
    direct = np.exp(-total)
    signal = direct + np.float32(0.6 * exposure.scatter) * _smooth(np.minimum(direct, 0.2), 35 / chest.grid.field)
    if rng is not None:
        signal = ndimage.gaussian_filter(signal, exposure.unsharpness / chest.grid.pixel, truncate=3.0)
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        signal = signal + noise * np.sqrt(signal / np.float32(exposure.photons))
    return -np.log(np.maximum(signal, 1e-4))


def _smooth(image: Field, sigma: float) -> Field:
    """Wide Gaussian blur (`sigma` in widths of the image), worked out on a small copy."""
    side = image.shape[0]
    small = Image.fromarray(image).resize((48, 48), Image.Resampling.BOX)
    blurred = ndimage.gaussian_filter(np.asarray(small), sigma * 48, mode="nearest")
    return np.asarray(Image.fromarray(blurred).resize((side, side), Image.Resampling.BICUBIC))


def _finish(image: NDArray[np.uint8], exposure: Exposure) -> NDArray[np.uint8]:
    """The collimator's border and the side marker."""
    size = image.shape[0]
    left, top = (round(share * size) for share in exposure.border)
    if left:
        image[:, :left] = image[:, size - left :] = 4
    if top:
        image[:top] = image[size - top :] = 4
    if not exposure.marker:
        return image
    canvas = Image.fromarray(image)
    across = 0.9 * size - left if exposure.marker == "L" else 0.07 * size + left  # the patient faces us
    position = (round(across), round(0.05 * size) + top)
    ImageDraw.Draw(canvas).text(position, exposure.marker, fill=245, font_size=size * 0.055)
    return np.asarray(canvas)
