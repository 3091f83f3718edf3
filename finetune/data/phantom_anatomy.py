"""The healthy chest of a made-up X-ray: how many millimetres of tissue, lung, bone and air each ray crosses.

Coordinates are millimetres, x to the right of the picture (the patient's left), y downwards, the origin in the midline
at the level of the hila. Organs are ellipsoids and tubes seen from the front; the chord of an ellipsoid falls to zero
like a square root at its rim, which is what gives the heart, the diaphragm and the ribs their crisp edges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]

TISSUE, LUNG = 0.0195, 0.0050
"""Linear attenuation per mm near 70 keV: water-like tissue, and lung at a quarter of its density (NIST XCOM tables)."""
BONE = 0.020
"""What cortical bone attenuates per mm beyond the tissue it displaces."""


@dataclass(frozen=True)
class Anatomy:
    """One patient: what stays the same from picture to picture. Lengths in mm."""

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
    """Rotation in the picture's plane, in radians."""
    yaw: float
    """Rotation about the long axis of the body, in radians: what lies in front moves against what lies behind."""
    shift: tuple[float, float]
    """Where the origin lies from the picture's centre, in mm."""
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
    """The picture's pixels in body coordinates."""

    size: int
    pose: Pose
    field: float
    """Side of the picture in mm."""

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
        """Mean thickness (mm) per pixel of points that hold `volume` mm^3 each, shared between the four nearest pixels."""
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
    t = np.clip(value / np.float32(2 * width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def cage(anatomy: Anatomy, y: Field, inset: float = 0.0, apical: float | None = None) -> Field:
    """Half the inner width of the chest at height y; `inset` and `apical` (mm) shrink it at the side and at the top."""
    top = anatomy.apex - 12 + (inset if apical is None else apical)
    low = 55.0
    up = np.clip((low - y) / np.float32(low - top), 0, 1)
    down = np.maximum(y - low, 0) / np.float32(90)
    return np.float32(anatomy.width - inset) * (1 - up**2.7) ** np.float32(0.5) * (1 - 0.06 * down**2)


@dataclass
class Chest:
    """Thickness maps (mm along the ray) of one picture before any lung disease."""

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
    """y of the costophrenic angle per side (-1: left in the picture, the patient's right; 1: the other)."""
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
    centre = 19 + 16 * step(anatomy.apex + 22 - y, 26.0) + 12 * step(y - 60, 40.0)
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
        bone=_bones(anatomy, grid, half, sway, pose.arms) * np.float32(anatomy.bone),
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
    knob = 0.5 * ellipse(x, y, 3 + anatomy.knob, up + 8, anatomy.knob, anatomy.knob * 1.15) ** np.float32(0.7)
    pulmonary = 0.4 * ellipse(x, y, 20, up + 42, 19, 24)
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
        deep * np.sqrt(np.maximum(1 - (ax / trunk_half) ** 3, 0)) * step(y + 150 - 0.18 * wall - 0.5 * (ax - 60), 30.0)
    )
    neck = 112 * np.sqrt(np.maximum(1 - (ax / (52 + 0.25 * wall)) ** 2, 0)) * step(-y - 60, 60.0)
    slope = step(y - (anatomy.apex - 42 + 0.34 * np.maximum(ax - 45, 0)), 9.0)  # trapezius
    joint = anatomy.width + 38 + 24 * pose.arms
    top = anatomy.apex + 34
    yoke = (96 + wall) * slope * step(ax - 35, 25.0) * np.sqrt(np.maximum(1 - ((y - top) / 78) ** 2 * (y > top), 0))
    yoke = yoke * step(joint + 58 - ax, 14.0)
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


def _bones(anatomy: Anatomy, grid: Grid, half: Field, sway: float, arms: float) -> Field:
    """Millimetres of cortical bone along each ray: ribs, spine, clavicles, scapulae, arms."""
    x, y = grid.x, grid.y
    bone = _ribs(anatomy, x, y, half, sway) + _spine(anatomy, x + 70 * sway, y)
    for side in (-1, 1):
        t = np.linspace(0, 1, 160)
        start, end = 14.0, anatomy.width + 22 + 20 * arms
        cx = side * (start + (end - start) * t) + 85 * sway
        cy = anatomy.apex + 50 - 34 * t - 10 * np.sin(2 * np.pi * t * 0.95)
        bone = bone + _tube(grid, cx, cy, radius=np.full_like(t, 6.6), wall=2.8)
        # humerus and its head, blade of the scapula
        lean, joint = 0.06 + 0.4 * arms, anatomy.width + 38 + 24 * arms
        hx, hy = side * (joint + 170 * t * np.sin(lean)), anatomy.apex + 30 + 170 * t * np.cos(lean)
        bone = bone + _tube(grid, hx, hy, radius=11 + 11 * np.exp(-((t / 0.09) ** 2)), wall=3.6)
        inner = anatomy.width - 6 + 34 * arms
        edge = _tube(
            grid,
            side * (inner + 22 - 26 * np.sin(np.pi * t * 0.7)),
            anatomy.apex + 28 + 118 * t,
            np.full_like(t, 3.0),
            1.5,
        )
        blade = 1.3 * step(side * x - inner + 6, 10.0) * step(inner + 34 - side * x, 10.0)
        bone = bone + 0.8 * edge + blade * step(y - anatomy.apex - 28, 14.0) * step(anatomy.apex + 130 - y, 18.0)
    return bone.astype(np.float32)


def _ribs(anatomy: Anatomy, x: Field, y: Field, half: Field, sway: float) -> Field:
    """Ribs as tilted hoops: near the spine they run level, at the side they drop, in front they come back lower.

    Every rib is the same curve shifted down, so one profile over the shifted height draws them all.
    """
    n = 10
    first = anatomy.apex + 6
    grid = np.arange(first - 30, first + n * anatomy.rib_gap + 60, 0.5, dtype=np.float32)
    profile = np.zeros_like(grid)
    for k in range(n):
        u = (grid - first - k * anatomy.rib_gap - 3 * k * (k < 2)) / (7.0 + 0.12 * k)
        shell = np.sqrt(np.maximum(1 - u**2, 0)) - 0.72 * np.sqrt(np.maximum(1 - (u / 0.72) ** 2, 0))
        profile += 8.5 * shell * (1.0 if k < 9 else 0.8)
    # the outline bulges over the lung apex more slowly than the ribs narrow: the hoops keep at least 55 mm
    hoop = np.maximum(half, 55.0) + 3
    total = np.zeros_like(x)
    for front in (False, True):
        moved = x - (75 if front else -70) * sway
        r = np.clip(np.abs(moved) / hoop, 0, 0.995)
        depth = np.sqrt(1 - r**2)
        drop = anatomy.rib_tilt * anatomy.depth * (1 + depth if front else 1 - depth) * np.sqrt(hoop / anatomy.width)
        bow = 10 * np.sin(np.pi * np.minimum(r, 1)) * (0.0 if front else 1.0)
        height = y - drop + bow
        layer = np.interp(height, grid, profile).astype(np.float32)
        oblique = np.minimum(1 / np.maximum(depth, 0.05), 3.2) ** np.float32(0.8)
        if front:  # the front ends are cartilage from the middle of the clavicle inwards
            layer = 0.5 * layer * step(r - 0.46, 0.05) * (height < first + 6.4 * anatomy.rib_gap)
        else:
            layer = layer * step(np.abs(moved) - 17, 4.0)
        total += layer * oblique * (np.abs(moved) < hoop)
    return total


def _spine(anatomy: Anatomy, x: Field, y: Field) -> Field:
    """Vertebral bodies with their end plates, pedicles and spinous processes."""
    gap = anatomy.rib_gap * (1 + 0.0012 * y)
    phase = ((y - anatomy.apex) / gap) % 1.0
    half = 15 + 0.035 * (y - anatomy.apex)
    column = np.sqrt(np.maximum(1 - (x / half) ** 2, 0))
    body = column * (
        5.5 + 3.0 * np.exp(-(((phase - 0.5) / 0.42) ** 8)) + 2.5 * np.exp(-(((np.abs(phase - 0.5) - 0.42) / 0.05) ** 2))
    )
    height = (phase - 0.42) * gap
    pedicle = np.exp(-(((np.hypot((np.abs(x) - 0.62 * half) / 1.0, height / 1.4) - 3.4) / 1.2) ** 2))
    process = np.exp(-((x / 2.6) ** 2) - ((height - 6) / 4.5) ** 2)
    return body + 2.4 * pedicle + 3.5 * process


def _tube(grid: Grid, x: NDArray, y: NDArray, radius: NDArray, wall: float) -> Field:
    """Cortical thickness (mm) of a hollow bone along a curve given by points of even parameter."""
    length = np.hypot(np.gradient(x), np.gradient(y))
    nx, ny = -np.gradient(y) / length, np.gradient(x) / length
    across = np.linspace(-0.96, 0.96, 17)
    shell = np.sqrt(1 - across**2)
    inner = 1 - wall / float(radius.mean())
    shell = shell - inner * np.sqrt(np.maximum(1 - (across / inner) ** 2, 0))
    px = x[:, None] + nx[:, None] * across * radius[:, None]
    py = y[:, None] + ny[:, None] * across * radius[:, None]
    volume = 2 * radius[:, None] ** 2 * shell * length[:, None] * (across[1] - across[0])
    return grid.blur(grid.splat(px.ravel(), py.ravel(), volume.ravel()), 0.9)


def _vessel_tree(anatomy: Anatomy, grid: Grid, sway: float) -> tuple[Field, Field]:
    """Thickness (mm) of the pulmonary vessels, and of the airways beside the larger ones."""
    rng = np.random.default_rng(anatomy.vessels)
    layers = [np.zeros_like(grid.x) for _ in range(3)]
    points: list[tuple[NDArray, NDArray, NDArray]] = []
    for side in (-1, 1):
        count = 9
        angle = np.linspace(-1.25, 1.45, count) + rng.normal(0, 0.12, count)  # from up to down, 0 is sideways
        x, y = np.full(count, 26.0) + rng.normal(0, 3, count), 2 + 16 * np.sin(angle) + 3 * side
        diameter = (7.6 + 2.4 * np.sin(angle)) * rng.uniform(0.8, 1.15, count)
        length = (28 + 9 * np.sin(angle)) * rng.uniform(0.8, 1.2, count)
        for generation in range(6):
            steps = 14
            t = np.linspace(0, 1, steps)[None, :]
            bend = rng.normal(0, 0.35, x.size)[:, None]
            heading = angle[:, None] + bend * t
            px = x[:, None] + np.cumsum(np.cos(heading), 1) * length[:, None] / steps
            py = y[:, None] + np.cumsum(np.sin(heading), 1) * length[:, None] / steps
            volume = np.pi / 4 * diameter[:, None] ** 2 * length[:, None] / steps * np.ones_like(t)
            points.append((side * px.ravel(), py.ravel(), volume.ravel()))
            layers[min(generation // 2, 2)] += grid.splat(side * px.ravel() + 10 * sway, py.ravel(), volume.ravel())
            x, y = np.repeat(px[:, -1], 2), np.repeat(py[:, -1], 2)
            fork = rng.uniform(0.2, 0.62, x.size) * np.tile([-1, 1], x.size // 2)
            angle = np.repeat(heading[:, -1], 2) + fork
            diameter = np.repeat(diameter, 2) * rng.uniform(0.62, 0.84, x.size)
            length = np.repeat(length, 2) * rng.uniform(0.62, 0.95, x.size)
    vessels = sum(grid.blur(layer, sigma) for layer, sigma in zip(layers, (1.5, 0.9, 0.6), strict=True))
    tree = [points[k] for k in range(len(points)) if k % 6 in (1, 2, 3)]
    air = grid.splat(*(np.concatenate(part) for part in zip(*tree, strict=True)))
    return np.asarray(vessels, dtype=np.float32), np.minimum(0.6 * grid.blur(air, 0.8), 7.0)
