"""Six findings drawn into a healthy chest as they look on a film, each with the box that holds it.

Sizes are those in the body, contrasts what a millimetre of lung attenuates afterwards over what it did before:

| finding       | size                                 | contrast                    | drawn as                               |
|---------------|--------------------------------------|-----------------------------|----------------------------------------|
| Cardiomegaly  | cardiothoracic ratio 0.54 to 0.64    | the heart's own             | wide heart [1]; healthy 0.38 to 0.48   |
| Effusion      | fluid to 40 to 115 mm above the      | x 3.9 (water) over 80 to    | meniscus that rises to the wall, angle |
|               | costophrenic angle                   | 100 % of the ray            | and diaphragm gone; 30 % on both sides |
| Pneumothorax  | rim of 18 to 50 mm, less downwards   | x 0 (air) over 85 to 100 %  | dark rim without vessels, white        |
|               |                                      |                             | visceral line [2]                      |
| Nodule        | 1 to 5 of 18 to 29 mm                | x 3.9; half of them         | round, smooth [3]                      |
|               |                                      | calcified, x 5.9            |                                        |
| Mass          | 42 to 80 mm                          | x 3.9                       | lobulated, spicules radiate [3]        |
| Consolidation | region of 60 to 130 mm               | x 1.7 to 3.7, cloudy        | ill-defined, air in the bronchi, no    |
|               |                                      |                             | vessels; half end at a fissure [3]     |

[1] Above 0.50 on a PA film is enlarged: Danzer, Am J Med Sci 157 (1919). [2] Large from 20 mm: British Thoracic
Society, Thorax 65 suppl 2 (2010). [3] Nodule up to 30 mm, mass above; consolidation hides vessels, airways stay:
Fleischner Society glossary, Radiology 246 (2008).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from finetune.data.phantom.anatomy import Chest, cage
from finetune.data.phantom.grid import Field, step

FINDINGS = ("Cardiomegaly", "Consolidation", "Effusion", "Mass", "Nodule", "Pneumothorax")
"""The classes, by their NIH names, in NIH's order within a row."""

CTR_HEALTHY = (0.38, 0.48)
CTR_ENLARGED = (0.54, 0.64)
EFFUSION_HEIGHT = (40.0, 115.0)
PNEUMOTHORAX_RIM = (18.0, 50.0)
NODULES = (1, 5)
NODULE_DIAMETER = (18.0, 29.0)
MASS_DIAMETER = (42.0, 80.0)
CONSOLIDATION_DIAMETER = (60.0, 130.0)

RANGES = {
    "cardiothoracic_ratio_healthy": list(CTR_HEALTHY),
    "cardiothoracic_ratio_cardiomegaly": list(CTR_ENLARGED),
    "effusion_height_mm": list(EFFUSION_HEIGHT),
    "pneumothorax_rim_mm": list(PNEUMOTHORAX_RIM),
    "nodule_count": list(NODULES),
    "nodule_diameter_mm": list(NODULE_DIAMETER),
    "mass_diameter_mm": list(MASS_DIAMETER),
    "consolidation_diameter_mm": list(CONSOLIDATION_DIAMETER),
}
"""What PHANTOM.json says of the findings; a set made with other ranges is another set."""

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]


@dataclass
class Lungs:
    """What an image's lungs hold while findings are drawn into them (mm along the ray)."""

    chest: Chest
    lung: Field
    gas: Field
    bone: Field
    vessels: Field
    free: Mask
    """Lung where no finding lies yet: a mass inside an effusion could not be seen."""

    @classmethod
    def from_chest(cls, chest: Chest) -> "Lungs":
        """The lungs of a chest without findings."""
        return cls(chest, chest.lung, chest.gas, chest.bone, chest.vessels, chest.lung_mask.copy())

    def fill(self, share: Field, airways: float = 0.0) -> None:
        """Replace `share` of the lung along each ray by water; `airways` is how much air the bronchi keep."""
        self.gas = self.gas + np.minimum(share * self.chest.bronchi * np.float32(airways), 0.5 * self.lung)
        self.lung = self.lung * (1 - share)
        self.vessels = self.vessels * (1 - share)


def draw(chest: Chest, findings: tuple[str, ...], seed: tuple[int, ...]) -> tuple[Lungs, list[tuple[str, Mask]]]:
    """The chest with the findings in it, and (finding, its pixels) per lesion; each looks the same whatever its
    company."""
    lungs = Lungs.from_chest(chest)
    lesions: list[tuple[str, Mask]] = []
    sides = np.random.default_rng((*seed, 99)).permutation([-1, 1])  # fluid on one side, air on the other
    for name, painter in PAINTERS.items():
        if name in findings:
            rng = np.random.default_rng((*seed, FINDINGS.index(name)))
            for mask in painter(lungs, rng, int(sides[0] if name == "Effusion" else sides[1])):
                if mask.any():
                    lesions.append((name, mask))
    return lungs, lesions


def box_of(mask: Mask) -> Box:
    """The smallest box (x, y, width, height in pixels) around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)


def _cardiomegaly(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    return [lungs.chest.heart_mask]  # the heart itself was built wide


def _pneumothorax(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    chest, anatomy = lungs.chest, lungs.chest.anatomy
    x, y = chest.grid.x, chest.grid.y
    rim = rng.uniform(*PNEUMOTHORAX_RIM)
    reach = rng.uniform(120, 240)  # mm from the apex down to where the pleurae meet again
    taper = np.clip(1 - (y - anatomy.apex) / np.float32(reach), 0, 1) ** np.float32(rng.uniform(0.5, 1.0))
    waves = 1 + 0.12 * np.sin(y / rng.uniform(14, 30) + rng.uniform(0, 6))
    edge = cage(anatomy, y, apical=rim * rng.uniform(0.9, 1.6)) - np.float32(rim) * taper * waves
    gap = side * x - edge  # > 0: outside the collapsed lung
    slope = np.hypot(*np.gradient(gap)) / np.float32(chest.grid.pixel / chest.grid.pose.scale)
    gap = gap / np.maximum(slope, 0.5)
    here = (side * x > 14) & (chest.lung > 0)
    air = step(gap, 1.2) * here * np.float32(rng.uniform(0.85, 1.0))
    line = np.exp(-((gap / np.float32(1.3)) ** 2)) * here * (taper > 0.02) * np.clip(chest.lung / 60, 0, 1)
    lungs.gas = lungs.gas + lungs.lung * air
    lungs.lung = np.maximum(lungs.lung * (1 - air) - np.float32(rng.uniform(9, 14)) * line, 0)
    lungs.vessels = lungs.vessels * (1 - air)
    mask = (air > 0.5) & (chest.lung > 12)
    lungs.free &= ~mask
    return [mask]


def _effusion(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    masks = []
    for s in (side, -side) if rng.random() < 0.3 and not (lungs.gas - lungs.chest.gas).any() else (side,):
        chest = lungs.chest
        x, y = chest.grid.x, chest.grid.y
        height = rng.uniform(*EFFUSION_HEIGHT)
        across = np.clip(s * x / np.maximum(chest.half_width, 1), 0, 1)  # 0 midline, 1 chest wall
        lift = rng.uniform(0.3, 0.5) + (1 - rng.uniform(0.3, 0.5)) * across ** rng.uniform(2.5, 5)
        surface = np.float32(chest.floor[s]) - np.float32(height) * lift.astype(np.float32)
        share = step(y - surface - 4, 9.0) * step(s * x - 16, 14.0) * np.float32(rng.uniform(0.8, 1.0))
        mask = (share > 0.3) & (chest.lung > 12)
        lungs.fill(share)
        lungs.free &= ~mask
        masks.append(mask)
    return masks


def _consolidation(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    chest, grid = lungs.chest, lungs.chest.grid
    long = rng.uniform(*CONSOLIDATION_DIAMETER) / 2
    short = max(long * rng.uniform(0.6, 1.0), CONSOLIDATION_DIAMETER[0] / 2)
    cx, cy = _place(lungs, rng, margin=0.35 * short)
    tilt = rng.uniform(0, np.pi)
    u = (grid.x - cx) * np.cos(tilt) + (grid.y - cy) * np.sin(tilt)
    v = (grid.y - cy) * np.cos(tilt) - (grid.x - cx) * np.sin(tilt)
    coarse, fine = _cloud(rng, grid.size, grid.field, 26.0), _cloud(rng, grid.size, grid.field, 12.0)
    radius = np.hypot(u / long, v / short) + 0.22 * coarse
    density = step(1 - radius, 0.34) * np.clip(0.82 + 0.12 * fine, 0.4, 1)
    if rng.random() < 0.5:  # a fissure: the lobe ends in a straight edge
        normal = rng.choice([-1, 1]) * (np.pi / 2 + rng.normal(0, 0.25))
        density = density * step((grid.x - cx) * np.cos(normal) + (grid.y - cy) * np.sin(normal) + 0.25 * short, 1.2)
    same_lung = grid.x * cx > 0
    share = (density * rng.uniform(0.6, 0.95) * same_lung).astype(np.float32)
    mask = (share > 0.25) & chest.lung_mask
    lungs.fill(share, airways=1.8)
    lungs.free &= ~mask
    return [mask]


def _mass(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    return [_lump(lungs, rng, rng.uniform(*MASS_DIAMETER), rough=0.13, spicules=int(rng.integers(9, 17)))]


def _nodule(lungs: Lungs, rng: np.random.Generator, side: int) -> list[Mask]:
    count = int(rng.integers(NODULES[0], NODULES[1] + 1))
    return [_lump(lungs, rng, rng.uniform(*NODULE_DIAMETER), rough=0.03, spicules=0) for _ in range(count)]


def _lump(lungs: Lungs, rng: np.random.Generator, diameter: float, rough: float, spicules: int) -> Mask:
    """A round thing of tissue in the lung; `rough` lobulates its outline, spicules radiate from it."""
    grid = lungs.chest.grid
    radius = diameter / 2
    cx, cy = _place(lungs, rng, margin=0.75 * radius)
    u, v = grid.x - np.float32(cx), (grid.y - np.float32(cy)) * np.float32(rng.uniform(0.85, 1.15))
    angle = np.arctan2(v, u)
    outline = np.ones_like(u)
    for k in range(2, 6):
        outline += np.float32(rough * rng.normal() / k**0.5) * np.cos(k * angle + np.float32(rng.uniform(0, 6.3)))
    r = np.hypot(u, v) / (np.float32(radius) * np.clip(outline, 0.6, 1.4))
    chord = diameter * rng.uniform(1.0, 1.4) * np.sqrt(np.maximum(1 - r**2, 0))  # as deep as wide, or deeper
    if spicules:
        rays = np.cos(spicules * angle + 1.3 * np.sin(2 * angle)) ** 8
        chord = np.maximum(chord, 12 * rays * step(1.6 - r, 0.4))
    chord = np.minimum(chord, 0.92 * lungs.lung).astype(np.float32)
    lungs.lung = lungs.lung - chord
    if not spicules and rng.random() < 0.5:
        lungs.bone = lungs.bone + 0.5 * chord  # a calcified granuloma
    mask = r < 1
    lungs.free &= ~mask
    return mask


def _place(lungs: Lungs, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    """A point of free lung, `margin` mm from its border where there is room."""
    grid = lungs.chest.grid
    stride = max(grid.size // 64, 1)
    for room in (lungs.free, lungs.chest.lung_mask):
        away = distance_transform_edt(np.pad(room[::stride, ::stride], 1))[1:-1, 1:-1] * stride * grid.pixel
        away = away / grid.pose.scale
        if away.max() > 4:
            rows, columns = np.nonzero(away >= min(margin, 0.85 * away.max()))
            pick = int(rng.integers(rows.size))
            i, j = int(rows[pick]) * stride, int(columns[pick]) * stride
            return float(grid.x[i, j]), float(grid.y[i, j])
    return 0.5 * lungs.chest.anatomy.width, 0.0


def _cloud(rng: np.random.Generator, size: int, field: float, grain: float) -> Field:
    """Smooth noise of mean 0 and deviation about 1 whose blobs measure `grain` mm."""
    n = max(round(field / grain), 2)
    noise = Image.fromarray(rng.standard_normal((n, n)).astype(np.float32))
    return np.float32(1.4) * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


PAINTERS: dict[str, Callable[[Lungs, np.random.Generator, int], list[Mask]]] = {
    # what takes a whole region first, so that the small ones can be put beside it
    "Cardiomegaly": _cardiomegaly,
    "Pneumothorax": _pneumothorax,
    "Effusion": _effusion,
    "Consolidation": _consolidation,
    "Mass": _mass,
    "Nodule": _nodule,
}
