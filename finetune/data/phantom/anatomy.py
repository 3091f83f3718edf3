"""The healthy chest of a made-up X-ray: how many millimetres of tissue, lung, bone and air each ray crosses.

Organs are ellipsoids and tubes seen from the front; the chord of an ellipsoid falls to zero
like a square root at its rim, which is what gives the heart, the diaphragm and the ribs their crisp edges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finetune.data.phantom.bones import bone_thickness
from finetune.data.phantom.grid import Anatomy, Field, Grid, Pose, ellipse, step

TISSUE, LUNG = 0.0195, 0.0050
"""Linear attenuation per mm near 70 keV: water-like tissue, and lung at a quarter of its density (NIST XCOM tables)."""
BONE = 0.020
"""What cortical bone attenuates per mm beyond the tissue it displaces."""


def cage(anatomy: Anatomy, y: Field, inset: float = 0.0, apical: float | None = None) -> Field:
    """Half the inner width of the chest at height y; `inset` and `apical` (mm) shrink it at the side and at the top."""
    top = anatomy.apex - 12 + (inset if apical is None else apical)
    low = 55.0
    up = np.clip((low - y) / np.float32(low - top), 0, 1)
    down = np.maximum(y - low, 0) / np.float32(90)
    return np.float32(anatomy.width - inset) * (1 - up**2.7) ** np.float32(0.5) * (1 - 0.06 * down**2)


@dataclass
class Chest:
    """Thickness maps (mm along the ray) of one image before any lung disease."""

    grid: Grid
    anatomy: Anatomy
    body: Field
    """Tissue, lung and cavities together."""
    cavity: Field
    """Front-to-back extent of the chest cavity."""
    lung: Field
    """Lung along the ray."""
    gas: Field
    """Air that is no lung: trachea, stomach."""
    bone: Field
    vessels: Field
    bronchi: Field
    """Air in the airways beside the larger vessels, seen only where the lung around them is filled."""
    half_width: Field
    """Half the chest's inner width at each pixel's height."""
    lung_mask: NDArray[np.bool_]
    heart_mask: NDArray[np.bool_]
    floor: dict[int, float]
    """y of the costophrenic angle per side (-1: left in the image, the patient's right; 1: the other)."""
    ctr: float
    """Cardiothoracic ratio as built, without the magnification of AP."""


def build_chest(anatomy: Anatomy, pose: Pose, size: int, field: float, ctr: float | None = None) -> Chest:
    """The healthy chest; `ctr` replaces the heart's own ratio (cardiomegaly is the one finding that moves an organ)."""
    grid = Grid(size, pose, field)
    x, y = grid.x, grid.y
    ctr = anatomy.ctr if ctr is None else ctr
    sway = float(np.sin(pose.yaw))  # mm sideways per mm of depth
    half = cage(anatomy, y)
    inside = np.maximum(half, 1e-3)
    r = np.minimum(np.abs(x) / inside, 1)
    slim = np.sqrt(np.clip(half / np.float32(anatomy.width), 0, 1))
    cavity = 2 * np.float32(anatomy.depth) * slim * np.sqrt(1 - r**3)

    domes, floor = _diaphragm(anatomy, pose, x, y)
    heart, heart_mask, knob = _heart(anatomy, pose, x - 35 * sway - pose.lean, y, ctr)
    # half the width of what lies between the lungs: narrow behind the sternum, wider at the apex and over the diaphragm
    centre = 19 + 10 * step(anatomy.apex + 22 - y, 34.0) + 12 * step(y - 60, 40.0)
    mediastinum = (0.72 - 0.34 * step(y - 5, 50.0)) * step(centre - np.abs(x - 5 * sway), 4.5)
    hila = 0.3 * np.exp(-(((np.abs(x) - 30) / 12) ** 2) - ((y + 2 * np.sign(x)) / 20) ** 2)
    open_share = (1 - mediastinum) * (1 - hila) * (1 - domes) * (1 - heart) * (1 - knob)
    lung = (cavity * open_share).astype(np.float32)

    gas = _airways(x - 4 * sway, y)
    if anatomy.stomach:
        top = anatomy.dome + anatomy.dome_drop - pose.breath[1]
        gas = gas + anatomy.stomach * 1.6 * ellipse(
            x, y, 62, top + anatomy.stomach * 0.8 + 6, anatomy.stomach * 1.5, anatomy.stomach * 0.8, 0.15
        )
    vessels, bronchi = _vessel_tree(anatomy, grid, sway)
    aerated = np.clip(lung / 90, 0, 1)
    lung_mask = (lung > 0.33 * cavity) & (lung > 22)
    return Chest(
        grid=grid,
        anatomy=anatomy,
        body=_body(anatomy, pose, x, y, half),
        cavity=cavity.astype(np.float32),
        lung=lung,
        gas=gas,
        bone=bone_thickness(anatomy, grid, half, sway, pose.arms) * np.float32(anatomy.bone),
        vessels=vessels * aerated,
        bronchi=bronchi,
        half_width=half,
        lung_mask=lung_mask,
        heart_mask=heart_mask,
        floor=floor,
        ctr=ctr,
    )


def _diaphragm(anatomy: Anatomy, pose: Pose, x: Field, y: Field) -> tuple[Field, dict[int, float]]:
    """Share of each ray below the diaphragm, and the height of the costophrenic angles."""
    share, floor = np.zeros_like(x), {}
    for side, lift, drop, inner in ((-1, pose.breath[0], 0.0, 62.0), (1, pose.breath[1], anatomy.dome_drop, 66.0)):
        top, ax, ay = anatomy.dome + drop - lift, anatomy.width - 48, 62.0
        cx, cy = side * inner, top + ay
        dome = ellipse(x, y, cx, cy, ax, ay)
        trunk = np.sqrt(np.maximum(1 - ((x - cx) / np.float32(ax)) ** 2, 0)) * (y > cy)
        share = np.maximum(share, np.maximum(dome, trunk) ** np.float32(0.6))
        floor[side] = float(cy - ay * np.sqrt(max(1 - ((anatomy.width - 3 - inner) / ax) ** 2, 0.0)))
    lowest = max(floor.values()) + 34
    return np.maximum(share, step(y - lowest, 8.0)), floor


def _heart(anatomy: Anatomy, pose: Pose, x: Field, y: Field, ctr: float) -> tuple[Field, NDArray[np.bool_], Field]:
    """Share of the cavity that the heart takes, where its shadow lies, and the share of the great vessels."""
    total = 2 * anatomy.width * ctr * pose.heart
    right, left = 0.31 * total, 0.69 * total  # from the midline to either border
    sit = anatomy.dome + anatomy.dome_drop - 0.5 * sum(pose.breath)
    a = 0.62 * left + 12
    b = 0.80 * a
    reach = np.hypot(a * np.cos(anatomy.heart_tilt), b * np.sin(anatomy.heart_tilt))
    cy = sit + 6 - 0.62 * b
    ventricles = ellipse(x, y, left - reach, cy, a, b, anatomy.heart_tilt)
    ra = 0.72 * right + 8
    atrium = ellipse(x, y, ra - right, cy - 8, ra, 0.95 * b)
    root = ellipse(x, y, 6, cy - b * 0.8, 30, 54, 0.1)
    chambers = 0.78 * np.maximum(ventricles, atrium) ** np.float32(0.65)
    up = anatomy.apex + 62
    knob = 0.42 * ellipse(x, y, 3 + anatomy.knob, up + 8, anatomy.knob, anatomy.knob * 1.15) ** np.float32(0.7)
    pulmonary = 0.34 * ellipse(x, y, 18, up + 42, 19, 28)
    descending = 0.22 * step(13 - np.abs(x - 22), 3.0) * step(y - up - 8, 8.0)
    shadow = (ventricles + atrium) > 0
    return np.maximum(chambers, 0.5 * root), shadow, np.maximum(np.maximum(knob, pulmonary), descending)


def _airways(x: Field, y: Field) -> Field:
    """Air in the trachea and the main bronchi, mm."""
    trachea = 16 * np.sqrt(np.maximum(1 - ((x + 3) / 8.5) ** 2, 0)) * step(-38 - y, 6.0)
    limbs = np.zeros_like(x)
    for side, slope in ((-1, 1.25), (1, 0.95)):
        along = side * (x + 3)
        away = (y + 36 - slope * along) / np.float32(np.hypot(1, slope))
        limbs += 11 * np.sqrt(np.maximum(1 - (away / 6) ** 2, 0)) * step(along, 4.0) * step(30 - along, 8.0)
    return np.maximum(trachea, limbs).astype(np.float32)


def _body(anatomy: Anatomy, pose: Pose, x: Field, y: Field, half: Field) -> Field:
    """Front-to-back thickness of the whole patient: trunk, neck, shoulders, arms, breasts."""
    wall = anatomy.wall
    ax = np.abs(x)
    trunk_half = np.float32(anatomy.width + wall) - 16 * step(-y - 60, 60.0) - 6 * step(y - 110, 50.0)
    deep = 2 * (anatomy.depth + 0.75 * wall)
    trunk = (
        deep * np.sqrt(np.maximum(1 - (ax / trunk_half) ** 3, 0)) * step(y + 150 - 0.18 * wall - 0.5 * (ax - 60), 30.0)  # type: ignore[arg-type]
    )
    neck = 112 * np.sqrt(np.maximum(1 - (ax / (52 + 0.25 * wall)) ** 2, 0)) * step(-y - 60, 60.0)
    slope = step(y - (anatomy.apex - 42 + 0.34 * np.maximum(ax - 45, 0)), 9.0)  # trapezius
    joint = anatomy.width + 38 + 24 * pose.arms
    top = anatomy.apex + 34
    yoke = (96 + wall) * slope * step(ax - 35, 25.0) * np.sqrt(np.maximum(1 - ((y - top) / 78) ** 2 * (y > top), 0))
    yoke = yoke * step(joint + 58 - ax, 14.0)  # type: ignore[arg-type]
    lean = np.float32(0.06 + 0.4 * pose.arms)  # the upper arm's angle from the vertical
    across = ((ax - joint) * np.cos(lean) - (y - top) * np.sin(lean)) / (40 + 0.35 * wall)
    arm = (84 + 0.6 * wall) * np.sqrt(np.maximum(1 - across**2, 0)) * step(y - top, 18.0)
    body = np.maximum(np.maximum(trunk, neck), np.maximum(yoke, arm))
    body = ndimage.gaussian_filter(body, 3.0 * x.shape[0] / 352)
    if anatomy.breast:
        size = anatomy.breast
        for side in (-1, 1):
            disc = ellipse(x, y, side * 82, 66, size, size * 0.9, 0.2 * side) ** np.float32(0.8)
            body = body + 0.5 * size * disc * step(y - 62 + 0.6 * size, 0.6 * size)
    return body.astype(np.float32)


def _vessel_tree(anatomy: Anatomy, grid: Grid, sway: float) -> tuple[Field, Field]:
    """Thickness (mm) of the pulmonary vessels, and of the airways beside the larger ones."""
    rng = np.random.default_rng(anatomy.vessels)
    points: list[list[tuple[NDArray, NDArray, NDArray]]] = [[] for _ in range(6)]  # by generation
    t = np.linspace(0, 1, 14)[None, :]
    for side in (-1, 1):
        count = 9
        angle = np.linspace(-1.25, 1.45, count) + rng.normal(0, 0.12, count)  # from up to down, 0 is sideways
        x, y = np.full(count, 26.0) + rng.normal(0, 3, count), 2 + 16 * np.sin(angle) + 3 * side
        diameter = (7.6 + 2.4 * np.sin(angle)) * rng.uniform(0.8, 1.15, count)
        length = (28 + 9 * np.sin(angle)) * rng.uniform(0.8, 1.2, count)
        for branches in points:
            stride = length[:, None] / t.size
            heading = angle[:, None] + rng.normal(0, 0.35, x.size)[:, None] * t
            px = x[:, None] + np.cumsum(np.cos(heading), 1) * stride
            py = y[:, None] + np.cumsum(np.sin(heading), 1) * stride
            volume = np.pi / 4 * diameter[:, None] ** 2 * stride * np.ones_like(t)
            branches.append((side * px.ravel() + 10 * sway, py.ravel(), volume.ravel()))
            x, y = np.repeat(px[:, -1], 2), np.repeat(py[:, -1], 2)
            fork = rng.uniform(0.2, 0.62, x.size) * np.tile([-1, 1], x.size // 2)
            angle = np.repeat(heading[:, -1], 2) + fork
            diameter = np.repeat(diameter, 2) * rng.uniform(0.62, 0.84, x.size)
            length = np.repeat(length, 2) * rng.uniform(0.62, 0.95, x.size)

    def layer(generations: slice, sigma: float) -> Field:
        chosen = [piece for branches in points[generations] for piece in branches]
        return grid.blur(grid.splat(*(np.concatenate(part) for part in zip(*chosen, strict=True))), sigma)

    vessels = layer(slice(0, 2), 1.5) + layer(slice(2, 4), 0.9) + layer(slice(4, 6), 0.6)
    return vessels, np.minimum(0.6 * layer(slice(1, 4), 0.8), 7.0)
