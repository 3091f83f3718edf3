"""The patient, the pose, and the pixels of a made-up X-ray in body coordinates.

Coordinates are millimetres, x to the right of the image (the patient's left), y downwards, the origin in the midline
at the level of the hila.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """One patient: what stays the same from image to image. Lengths in mm."""

    width: float
    """Half the inner width of the chest at its widest."""
    depth: float
    """Half the inner depth of the chest."""
    apex: float
    """y of the lung apex (negative: above the hila)."""
    dome: float
    """y of the top of the right diaphragm at full inspiration."""
    dome_drop: float
    """How much lower the left diaphragm stands."""
    wall: float
    """Thickness of the chest wall beside the ribs."""
    ctr: float
    """Cardiothoracic ratio of the healthy heart: its greatest width over the inner width of the chest."""
    heart_tilt: float
    """Angle of the heart's long axis below the horizontal, in radians."""
    knob: float
    """Radius of the aortic knob."""
    breast: float
    """Radius of the breasts; 0 for none."""
    air: float
    """Density of the lung relative to an average one."""
    rib_gap: float
    """Distance between neighbouring ribs at the spine."""
    rib_tilt: float
    """Drop of a rib per mm towards the front."""
    bone: float
    """Mineral content of bone relative to an average one."""
    stomach: float
    """Radius of the gastric air bubble; 0 for none."""
    vessels: int
    """Seed of the vessel tree."""


@dataclass(frozen=True)
class Pose:
    """One exposure's geometry."""

    scale: float
    """Magnification."""
    roll: float
    """Rotation in the image's plane, in radians."""
    yaw: float
    """Rotation about the long axis of the body, in radians: what lies in front moves against what lies behind."""
    shift: tuple[float, float]
    """Where the origin lies from the image's centre, in mm."""
    breath: tuple[float, float]
    """How far the right and the left diaphragm stand above full inspiration, in mm."""
    lean: float
    """How far the heart hangs to the left, mm."""
    heart: float
    """Magnification of the heart relative to the chest (AP: the heart is far from the detector)."""
    arms: float
    """How far the shoulders are rolled outwards, 0 to 1."""


@dataclass
class Grid:
    """The image's pixels in body coordinates."""

    size: int
    pose: Pose
    field: float
    """Side of the image in mm."""

    def __post_init__(self) -> None:
        self.pixel = self.field / self.size
        centre = (np.arange(self.size, dtype=np.float32) + 0.5) * self.pixel - self.field / 2
        u, v = centre[None, :] - self.pose.shift[0], centre[:, None] - self.pose.shift[1]
        cos, sin = np.cos(self.pose.roll) / self.pose.scale, np.sin(self.pose.roll) / self.pose.scale
        self.x = (cos * u + sin * v).astype(np.float32)  # (size, size)
        self.y = (-sin * u + cos * v).astype(np.float32)  # (size, size)

    def to_pixels(self, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        """Body millimetres -> pixel indices (column, row), as floats."""
        cos, sin = np.cos(self.pose.roll) * self.pose.scale, np.sin(self.pose.roll) * self.pose.scale
        u = cos * x - sin * y + self.pose.shift[0] + self.field / 2
        v = sin * x + cos * y + self.pose.shift[1] + self.field / 2
        return u / self.pixel - 0.5, v / self.pixel - 0.5

    def blur(self, image: Field, sigma_mm: float) -> Field:
        """Gaussian blur by a width in body millimetres."""
        sigma = sigma_mm * self.pose.scale / self.pixel
        return image if sigma < 0.2 else ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)

    def splat(self, x: NDArray, y: NDArray, volume: NDArray) -> Field:
        """Mean thickness (mm) per pixel of points of `volume` mm^3 each, shared between the four nearest pixels."""
        column, row = self.to_pixels(x, y)
        i, j = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
        inside = (i >= 0) & (i < self.size - 1) & (j >= 0) & (j < self.size - 1)
        i, j = i[inside], j[inside]
        fi, fj, mass = row[inside] - i, column[inside] - j, volume[inside]
        flat = i * self.size + j
        index = np.concatenate([flat, flat + 1, flat + self.size, flat + self.size + 1])
        weight = np.concatenate([(1 - fi) * (1 - fj), (1 - fi) * fj, fi * (1 - fj), fi * fj]) * np.tile(mass, 4)
        area = (self.pixel / self.pose.scale) ** 2
        image = np.bincount(index, weight, self.size**2) / area
        return image.reshape(self.size, self.size).astype(np.float32)


def ellipse(x: Field, y: Field, cx: float, cy: float, ax: float, ay: float, tilt: float = 0.0) -> Field:
    """Chord of an ellipsoid as a fraction of its depth: 1 at the centre, falling to 0 at the rim."""
    u, v = x - np.float32(cx), y - np.float32(cy)
    if tilt:
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        u, v = cos * u + sin * v, cos * v - sin * u
    return np.sqrt(np.maximum(1 - (u / np.float32(ax)) ** 2 - (v / np.float32(ay)) ** 2, 0))


def step(value: Field, width: float) -> Field:
    """Smooth step from 0 (value < -width) to 1 (value > width)."""
    t = value * np.float32(0.5 / width)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)
