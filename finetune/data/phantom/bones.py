"""The skeleton of a made-up chest X-ray: millimetres of cortical bone that each ray crosses."""

import numpy as np
from numpy.typing import NDArray

from finetune.data.phantom.grid import Anatomy, Field, Grid, step

Curve = tuple[NDArray, NDArray, NDArray]
"""Points (x, y in mm) and the volume of bone (mm^3) that each stands for."""


def bone_thickness(anatomy: Anatomy, grid: Grid, half: Field, sway: float, arms: float) -> Field:
    """Ribs, spine, clavicles, scapulae and upper arms; `half` is the half width of the chest at each pixel's height."""
    x, y = grid.x, grid.y
    bone = _ribs(anatomy, x, y, half, sway) + _spine(anatomy, x + np.float32(70 * sway), y)
    t = np.linspace(0, 1, 160)
    lean, joint = 0.06 + 0.4 * arms, anatomy.width + 38 + 24 * arms
    inner = anatomy.width - 6 + 34 * arms
    curves = []
    for side in (-1, 1):
        cx = side * (14 + (anatomy.width + 8 + 20 * arms) * t) + 85 * sway
        cy = anatomy.apex + 50 - 34 * t - 10 * np.sin(2 * np.pi * t * 0.95)
        curves.append(_tube(cx, cy, np.full_like(t, 6.6), wall=2.8))  # clavicle
        hx, hy = side * (joint + 170 * t * np.sin(lean)), anatomy.apex + 30 + 170 * t * np.cos(lean)
        curves.append(_tube(hx, hy, 11 + 11 * np.exp(-((t / 0.09) ** 2)), wall=3.6))  # humerus and its head
        sx = side * (inner + 22 - 26 * np.sin(np.pi * t * 0.7))
        curves.append(_tube(sx, anatomy.apex + 28 + 118 * t, np.full_like(t, 3.0), wall=1.3))  # edge of the scapula
    bone += grid.blur(grid.splat(*(np.concatenate(part) for part in zip(*curves, strict=True))), 0.9)
    beside = np.abs(x)
    blade = step(beside - (inner - 6), 10.0) * step(inner + 34 - beside, 10.0)
    blade *= step(y - (anatomy.apex + 28), 14.0) * step(anatomy.apex + 130 - y, 18.0)
    return bone + np.float32(1.3) * blade


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
    bone = np.zeros_like(x)
    near = np.abs(x) < 32
    x, y = x[near], y[near]
    gap = anatomy.rib_gap * (1 + 0.0012 * y)
    phase = ((y - anatomy.apex) / gap) % 1.0
    half = 15 + 0.035 * (y - anatomy.apex)
    column = np.sqrt(np.maximum(1 - (x / half) ** 2, 0))
    middle = np.abs(phase - 0.5)
    body = column * (5.5 + 3.0 * (middle < 0.4) + 2.5 * np.exp(-(((middle - 0.42) / 0.05) ** 2)))
    height = (phase - 0.42) * gap
    pedicle = np.exp(-(((np.hypot(np.abs(x) - 0.62 * half, height / 1.4) - 3.4) / 1.2) ** 2))
    process = np.exp(-((x / 2.6) ** 2) - ((height - 6) / 4.5) ** 2)
    bone[near] = body + 2.4 * pedicle + 3.5 * process
    return bone


def _tube(x: NDArray, y: NDArray, radius: NDArray, wall: float) -> Curve:
    """The shell of a hollow bone along a curve given by points of even parameter."""
    length = np.hypot(np.gradient(x), np.gradient(y))
    nx, ny = -np.gradient(y) / length, np.gradient(x) / length
    across = np.linspace(-0.96, 0.96, 17)
    inner = 1 - wall / float(radius.mean())
    shell = np.sqrt(1 - across**2) - inner * np.sqrt(np.maximum(1 - (across / inner) ** 2, 0))
    px = x[:, None] + nx[:, None] * across * radius[:, None]
    py = y[:, None] + ny[:, None] * across * radius[:, None]
    volume = 2 * radius[:, None] ** 2 * shell * length[:, None] * (across[1] - across[0])
    return px.ravel(), py.ravel(), volume.ravel()
